-- A journal as version 1 left it after SIGKILL, in every state. Never edited: later versions must read it.
BEGIN TRANSACTION;
CREATE TABLE calls (
    n            INTEGER PRIMARY KEY,
    turn_id      TEXT NOT NULL,
    attempt      INTEGER NOT NULL,
    id           TEXT NOT NULL,  -- the runtime's own
    name         TEXT NOT NULL,
    digest       TEXT NOT NULL,  -- sha256 of the arguments
    excerpt      TEXT NOT NULL,  -- their first characters
    asked_at     REAL NOT NULL,
    permitted_at REAL,
    ended_at     REAL,
    withdrawn_at REAL,
    outcome      TEXT,
    UNIQUE (turn_id, attempt, id)
) STRICT;
INSERT INTO "calls" VALUES(1,'turn-running',1,'done','Bash','4cf29611a66934862f29acfcc817e30b905c1ab73d5e65831413eb6b454d49db','{"command":"ls"}',1800000001.0,1800000001.0,1800000002.0,NULL,'ok');
INSERT INTO "calls" VALUES(2,'turn-running',1,'cut','Bash','4cf29611a66934862f29acfcc817e30b905c1ab73d5e65831413eb6b454d49db','{"command":"ls"}',1800000003.0,1800000003.0,NULL,NULL,NULL);
INSERT INTO "calls" VALUES(3,'turn-running',1,'asked','Bash','4cf29611a66934862f29acfcc817e30b905c1ab73d5e65831413eb6b454d49db','{"command":"ls"}',1800000004.0,NULL,NULL,NULL,NULL);
CREATE TABLE children (
    pid         INTEGER NOT NULL,
    start_ticks INTEGER NOT NULL,  -- with the pid it names one process for ever
    boot_id     TEXT NOT NULL,     -- the life that started it
    what        TEXT NOT NULL,
    PRIMARY KEY (pid, start_ticks)
) STRICT, WITHOUT ROWID;
INSERT INTO "children" VALUES(4194305,24,'boot-1','claude');
CREATE TABLE events (
    turn_id TEXT NOT NULL,
    n       INTEGER NOT NULL,  -- 1, 2, 3 … over all attempts: the cursor
    attempt INTEGER NOT NULL,
    at      REAL NOT NULL,
    kind    TEXT NOT NULL,
    body    TEXT NOT NULL,     -- JSON
    PRIMARY KEY (turn_id, n)
) STRICT, WITHOUT ROWID;
INSERT INTO "events" VALUES('turn-running',1,1,1800000005.0,'text','{"text": "so far"}');
CREATE TABLE messages (
    seq  INTEGER PRIMARY KEY,  -- of the turn
    body BLOB,                 -- or, when large,
    file TEXT                  -- the sha256 digest that names it under blobs/
) STRICT;
INSERT INTO "messages" VALUES(1,X'7B226D6573736167654964223A20226163636570746564227D',NULL);
INSERT INTO "messages" VALUES(2,X'7B226D6573736167654964223A202272756E6E696E67227D',NULL);
INSERT INTO "messages" VALUES(3,X'7B226D6573736167654964223A20227061726B6564227D',NULL);
INSERT INTO "messages" VALUES(4,X'7B226D6573736167654964223A2022696E746572727570746564227D',NULL);
INSERT INTO "messages" VALUES(5,X'7B226D6573736167654964223A202273757370656E646564227D',NULL);
INSERT INTO "messages" VALUES(8,X'7B226D6573736167654964223A20226661696C6564227D',NULL);
INSERT INTO "messages" VALUES(10,X'7B226D6573736167654964223A202265787069726564227D',NULL);
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO "meta" VALUES('id','0123456789abcdef');
CREATE TABLE owner (
    only    INTEGER PRIMARY KEY CHECK (only = 1),
    boot_id TEXT NOT NULL,
    since   REAL NOT NULL,              -- UTC epoch seconds, as every time in this file
    probes  INTEGER NOT NULL DEFAULT 0  -- written to find out whether writing works
) STRICT;
INSERT INTO "owner" VALUES(1,'boot-1',1800000000.0,0);
CREATE TABLE sessions (
    id           TEXT PRIMARY KEY,  -- A2A's contextId
    caller       TEXT,              -- who opened it, where authenticated; it belongs to them
    handle       TEXT,              -- the runtime's own name for it
    created_at   REAL NOT NULL,
    last_turn_at REAL NOT NULL
) STRICT;
INSERT INTO "sessions" VALUES('session',NULL,'handle-1',1800000000.0,1800000000.0);
CREATE TABLE turns (
    seq           INTEGER PRIMARY KEY,
    id            TEXT NOT NULL UNIQUE,
    task_id       TEXT NOT NULL,
    turn_key      TEXT NOT NULL UNIQUE,  -- one message, one turn; forgotten ones get a key nobody sends
    content_hash  TEXT NOT NULL,
    message_id    TEXT NOT NULL,
    session_id    TEXT NOT NULL,
    caller        TEXT,
    source        TEXT,
    state         TEXT NOT NULL CHECK (state IN ('accepted', 'running', 'answered', 'failed', 'canceled',
                                                 'parked', 'interrupted', 'expired', 'suspended')),
    attempt       INTEGER NOT NULL DEFAULT 0,
    strikes       INTEGER NOT NULL DEFAULT 0,
    charges       INTEGER NOT NULL DEFAULT 0,
    settled       INTEGER NOT NULL DEFAULT 0,
    cut           TEXT,
    cause         TEXT,
    outcome       TEXT,  -- turns.Outcome as JSON
    answer        TEXT,  -- or, when large,
    answer_file   TEXT,  -- the sha256 digest that names it under blobs/
    boot_id       TEXT,  -- the life that made its last start
    accepted_at   REAL NOT NULL,
    started_at    REAL,
    last_event_at REAL,
    ended_at      REAL,  -- set exactly while the state is one of turns.ENDED
    delivered_at  REAL,
    expires_at    REAL,
    notified_at   REAL
) STRICT;
INSERT INTO "turns" VALUES(1,'turn-accepted','task-accepted','key-accepted','hash-accepted','accepted','session',NULL,NULL,'accepted',0,0,0,0,NULL,NULL,NULL,NULL,NULL,NULL,1800000000.0,NULL,NULL,NULL,NULL,1800000060.0,NULL);
INSERT INTO "turns" VALUES(2,'turn-running','task-running','key-running','hash-running','running','session',NULL,NULL,'running',1,1,1,0,NULL,NULL,NULL,NULL,NULL,'boot-1',1800000000.0,1800000000.0,1800000005.0,NULL,NULL,NULL,NULL);
INSERT INTO "turns" VALUES(3,'turn-parked','task-parked','key-parked','hash-parked','parked','session',NULL,NULL,'parked',1,1,1,1,NULL,'it ended at the closed gate',NULL,NULL,NULL,'boot-1',1800000000.0,1800000000.0,1800000006.0,NULL,NULL,NULL,NULL);
INSERT INTO "turns" VALUES(4,'turn-interrupted','task-interrupted','key-interrupted','hash-interrupted','interrupted','session',NULL,NULL,'interrupted',1,1,1,0,NULL,'the runtime died',NULL,NULL,NULL,'boot-1',1800000000.0,1800000000.0,1800000000.0,NULL,NULL,NULL,NULL);
INSERT INTO "turns" VALUES(5,'turn-suspended','task-suspended','key-suspended','hash-suspended','suspended','session',NULL,NULL,'suspended',1,1,1,0,'Bash abc','3 attempts without progress','{"kind": "suspended", "reason": "3 attempts without progress", "retryable": false, "input_tokens": 0, "output_tokens": 0}',NULL,NULL,'boot-1',1800000000.0,1800000000.0,1800000000.0,NULL,NULL,NULL,NULL);
INSERT INTO "turns" VALUES(6,'turn-answered','task-answered','key-answered','hash-answered','answered','session',NULL,NULL,'answered',1,1,1,0,NULL,'','{"kind": "answered", "reason": "", "retryable": false, "input_tokens": 0, "output_tokens": 0}','the answer',NULL,'boot-1',1800000000.0,1800000000.0,1800000000.0,1800000000.0,NULL,NULL,NULL);
INSERT INTO "turns" VALUES(7,'turn-delivered','task-delivered','key-delivered','hash-delivered','delivered','session',NULL,NULL,'answered',1,1,1,0,NULL,'','{"kind": "answered", "reason": "", "retryable": false, "input_tokens": 0, "output_tokens": 0}','done',NULL,'boot-1',1800000000.0,1800000000.0,1800000000.0,1800000000.0,1800000008.0,NULL,NULL);
INSERT INTO "turns" VALUES(8,'turn-failed','task-failed','key-failed','hash-failed','failed','session',NULL,NULL,'failed',1,1,1,0,NULL,'TurnFailed','{"kind": "failed", "reason": "the model is unreachable", "retryable": true, "input_tokens": 0, "output_tokens": 0}',NULL,NULL,'boot-1',1800000000.0,1800000000.0,1800000006.0,1800000006.0,NULL,NULL,NULL);
INSERT INTO "turns" VALUES(9,'turn-canceled','task-canceled','key-canceled','hash-canceled','canceled','session',NULL,NULL,'canceled',1,1,1,0,NULL,'canceled by its asker','{"kind": "canceled", "reason": "canceled by its asker", "retryable": false, "input_tokens": 0, "output_tokens": 0}',NULL,NULL,'boot-1',1800000000.0,1800000000.0,1800000007.0,1800000007.0,NULL,NULL,NULL);
INSERT INTO "turns" VALUES(10,'turn-expired','task-expired','key-expired','hash-expired','expired','session',NULL,NULL,'expired',1,1,1,0,NULL,'silent','{"kind": "expired", "reason": "silent", "retryable": true, "input_tokens": 0, "output_tokens": 0}',NULL,NULL,'boot-1',1800000000.0,1800000000.0,1800000000.0,1800000007.0,NULL,NULL,NULL);
CREATE INDEX turns_unfinished ON turns (state) WHERE ended_at IS NULL;
CREATE INDEX turns_ended ON turns (delivered_at, ended_at, state) WHERE ended_at IS NOT NULL;
CREATE INDEX turns_by_session ON turns (session_id);
CREATE INDEX turns_by_task ON turns (task_id);
CREATE INDEX turns_by_caller ON turns (caller) WHERE caller IS NOT NULL;
CREATE INDEX turns_answer_file ON turns (answer_file) WHERE answer_file IS NOT NULL;
CREATE INDEX messages_file ON messages (file) WHERE file IS NOT NULL;
COMMIT;

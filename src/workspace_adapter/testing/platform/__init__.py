"""A stand-in for the existing platform: it checks what a workspace sends, and behaves as the real one does.

In a test, sync or async::

    with FakePlatform(configs_dir=configs) as platform:
        environ["PLATFORM_URL"] = platform.url
        …
        platform.fail(Fault.answer(500), on="/heartbeat", times=3)
        …
        platform.assert_no_violations()
"""

from .faults import Fault
from .platform import ContractBroken, FakePlatform
from .registry import Received
from .times import Times

__all__ = ["ContractBroken", "FakePlatform", "Fault", "Received", "Times"]

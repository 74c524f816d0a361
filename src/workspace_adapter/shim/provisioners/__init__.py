"""How a workspace is stopped and started; ``docs/provisioners.md`` says it for operators."""

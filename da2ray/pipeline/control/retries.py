"""How often Ray retries a task, a teacher or a shard whose process died."""

TASK_RETRIES = 3
"""Retries of a read or write task whose worker died. Ray Data's default is to retry for ever: an image that kills its process
would be tried 15 times a minute."""

LOAD_RETRIES = 3
"""Teachers that may fail to load one after another. Ray Data's default is 0: one new node that cannot fetch the weights would end
the run for all."""

LABEL_RETRIES = 32
"""Retries of a shard whose teacher process died. The fourth death finds an image that kills it, the sixth another one."""

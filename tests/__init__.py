"""Give each test process a Ray token before Ray is imported, because Ray reads its authentication mode once, on import.

Whether Ray asks for a token by default depends on the machine, so the heads of these tests always ask for one.
"""

import os
import secrets

# A process that a test starts keeps the token of the test.
AUTH = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)}
os.environ.update(AUTH)

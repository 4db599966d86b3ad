"""Ray reads its way of authentication once, when it is imported: processes of tests have a token before that.

Whether Ray asks for one by itself depends on the machine; so heads of tests always ask.
"""

import os
import secrets

# A process that a test starts keeps the token of the test.
AUTH = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)}
os.environ.update(AUTH)

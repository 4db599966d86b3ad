"""Ray reads its way of authentication once, when it is imported: processes of tests have a token before that.

Whether Ray asks for one by itself depends on the machine; so heads of tests always ask.
"""

import os
import secrets

AUTH = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
os.environ.update(AUTH)

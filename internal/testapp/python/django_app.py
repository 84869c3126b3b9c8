# Django's sessions, in its database or, by django-redis-sessions, in Redis: see testapp.go.
import json
import sys
import time
import traceback
from urllib.parse import urlsplit

import pymysql

pymysql.version_info = (2, 2, 1, "final", 0)  # of mysqlclient, which Django asks for
pymysql.install_as_MySQLdb()

import django
from django.conf import settings

url = urlsplit(sys.argv[1])
at = {"HOST": url.hostname, "PORT": url.port, "USER": url.username, "NAME": url.path[1:]}
where = {
    "mysql": {"DATABASES": {"default": {"ENGINE": "django.db.backends.mysql", **at}}},
    "postgres": {"DATABASES": {"default": {"ENGINE": "django.db.backends.postgresql", **at}}},
    "redis": {
        "SESSION_ENGINE": "redis_sessions.session",
        "SESSION_REDIS": {"host": url.hostname, "port": url.port, "prefix": "session", "socket_timeout": 30},
    },
}
settings.configure(
    SECRET_KEY="s", USE_TZ=True, TIME_ZONE="America/St_Johns", INSTALLED_APPS=["django.contrib.sessions"], **where[url.scheme]
)
django.setup()

from importlib import import_module

SessionStore = import_module(settings.SESSION_ENGINE).SessionStore


def run(do, id=None, text=None, life=None):
    if do == "create":
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
    elif do == "gc":
        SessionStore.clear_expired()
    elif do == "read":
        s = SessionStore(session_key=id)
        text = s.get("text", "")
        return {"found": s.session_key is not None and bool(s.exists(id)), "text": text}
    elif do == "write":
        s = SessionStore(session_key=id)
        if text:
            s["text"] = text
        s.set_expiry(life)
        if s.session_key is None:  # none was found
            s._session_key = id
            s.save(must_create=True)
        else:
            s.save()
    elif do == "destroy":
        SessionStore(session_key=id).delete(id)
    else:
        raise ValueError(do)
    return {}


for line in sys.stdin:
    try:
        answer = run(**json.loads(line))
    except Exception:
        answer = {"error": traceback.format_exc()}
    print(json.dumps(answer), flush=True)

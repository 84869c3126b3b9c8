# Django's sessions in a cache that is Redis or memcached, asked for pages through its middleware: see stores.go.
import json
import sys
import tempfile
import threading
import time
from urllib.parse import urlsplit

import django
from django.conf import settings

library, engine, url, kept = sys.argv[1:]
backends = {
    "Django": "django.core.cache.backends.redis.RedisCache",
    "django-redis": "django_redis.cache.RedisCache",
    "pymemcache": "django.core.cache.backends.memcached.PyMemcacheCache",
}
table = tempfile.TemporaryDirectory()
settings.configure(
    SECRET_KEY="s",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["django.contrib.sessions"],
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
    SESSION_ENGINE="django.contrib.sessions.backends." + engine,
    SESSION_COOKIE_AGE=3600,
    CACHES={name: {"BACKEND": backends[library], "LOCATION": at} for name, at in (("default", url), ("kept", kept))},
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": table.name + "/db"}},
)
django.setup()

from django.core.cache import caches
from django.core.management import call_command
from django.http import JsonResponse
from django.test import Client
from django.urls import path
from importlib import import_module

SessionStore = import_module(settings.SESSION_ENGINE).SessionStore


# page does with its session what is asked for.
def page(request):
    s, what = request.session, json.loads(request.body)
    match what.pop("do"):
        case "read":
            pass
        case "set":
            s.update(what)
        case "live":
            s.set_expiry(what["for"])
        case "drop":
            s.pop(what["name"])
        case "count":
            s["n"] = s.get("n", 0) + 1
        case "cycle":
            s.cycle_key()
        case "flush":
            s.flush()
        case "save":
            s.update(what)
            s.save()
    return JsonResponse({k: v for k, v in s.items() if not k.startswith("_")})


urlpatterns = [path("", page)]


def say(step, value):
    print(step + ": " + json.dumps(value))


# Browser keeps the cookie, and says when it is a new one.
class Browser:
    def __init__(self, id=None):
        self.client = Client()
        if id:
            self.client.cookies["sessionid"] = id

    def id(self):
        cookie = self.client.cookies.get("sessionid")
        return cookie.value if cookie else ""

    def __call__(self, do, **args):
        before = self.id()
        res = self.client.post("/", json.dumps({"do": do, **args}), content_type="application/json")
        return [res.json(), "same id" if self.id() == before else "new id" if self.id() else "no id"]


if engine == "cached_db":
    call_command("migrate", verbosity=0)
a = Browser()
say("nothing is kept", a("read"))
say("begin", a("set", user="alice"))
first = a.id()
say("read", a("read"))
say("there is", SessionStore().exists(first))
say("there is not", SessionStore().exists("nobody0nobody"))
say("change", a("set", user="Grüße 🍀\r\n\0"))
say("read", a("read"))
say("save", a("save", n=7))
say("large", len(a("set", b="x" * 300000)[0]["b"]))
say("read", len(a("read")[0]["b"]))
say("drop", a("drop", name="b"))
say("live longer", a("live", **{"for": 7200}))
say("unknown id", Browser("nobody0nobody0nobody0nobody0")("set", user="eve"))
say("cycle", a("cycle"))
say("read", a("read"))
say("the old one", Browser(first)("read"))
gone = a.id()
say("flush", a("flush"))
say("read", a("read"))
say("there is not", SessionStore().exists(gone))

b = Browser()
b("set", user="bob")
say("live for a second", b("live", **{"for": 1}))
while SessionStore().exists(b.id()) and SessionStore(session_key=b.id()).load():
    time.sleep(0.02)
say("read", b("read"))

# A session that was saved while it was flushed elsewhere.
c = Browser()
c("set", user="carol")
late = SessionStore(session_key=c.id())
late["user"] = "nobody"
c("flush")
try:
    late.save()
    say("late", "saved")
except Exception as e:
    say("late", type(e).__name__)

browsers, wrong = [Browser() for _ in range(20)], []


def at_once(n):
    one, user = browsers[n], "user%d" % n
    one("set", user=user)
    wrong.extend(got for got in (one("read")[0] for _ in range(10)) if got != {"user": user})
    if n > 1:
        one("flush")


threads = [threading.Thread(target=at_once, args=(n,)) for n in range(20)]
for t in threads:
    t.start()
for t in threads:
    t.join()
say("at once", wrong)
d = Browser()
for _ in range(20):
    d("count")
say("count", d("count"))
d("live", **{"for": 0})  # as long as the browser
say("read", d("read"))

for one in (d, browsers[0], browsers[1]):
    say("kept", caches["kept"].get(SessionStore.cache_key_prefix + one.id()))

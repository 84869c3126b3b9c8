# redis-py, told to find the server through Sentinels or as a Cluster, does what a session handler does: see clients.go.
import json
import sys

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

kind, addresses, service = sys.argv[1:]
nodes = [(host, int(port)) for host, port in (a.rsplit(":", 1) for a in addresses.split(","))]
release = 'if redis.call("get",KEYS[1]) == ARGV[1] then return redis.call("del",KEYS[1]) else return 0 end'


def say(step, value):
    print(step + ": " + json.dumps(value, separators=(",", ":")))


if kind == "cluster":
    from redis.cluster import ClusterNode, RedisCluster

    r = RedisCluster(startup_nodes=[ClusterNode(*n) for n in nodes], decode_responses=True)
    info = r.execute_command("CLIENT INFO", target_nodes=RedisCluster.RANDOM)
    mget, unlink = r.mget_nonatomic, r.unlink
else:
    once = {"retry": Retry(NoBackoff(), 0)}  # it would ask one that is down for seconds, each time
    sentinel = Sentinel(nodes, sentinel_kwargs=once, decode_responses=True)
    r = sentinel.master_for(service)
    info = r.client_info()
    assert sentinel.discover_slaves(service) == [], "replicas"
    assert sentinel.slave_for(service).get("k") is None, "read from the primary, where there are no replicas"
    mget, unlink = r.mget, r.unlink

if isinstance(info, str):  # not parsed
    info = dict(f.split("=", 1) for f in info.split())
say("where", info["laddr"])
say("get", r.get("k"))
say("setex", r.setex("k", 100, "v"))
say("get", r.get("k"))
say("expire", int(r.expire("k", 200)))
say("ttl", r.ttl("k") > 100)
say("lock", bool(r.set("k_LOCK", "me", px=30000, nx=True)))
say("lock", bool(r.set("k_LOCK", "you", px=100, nx=True)))
say("release", r.eval(release, 1, "k_LOCK", "me"))
say("exists", r.exists("k"))
say("del", r.delete("k"))
p = r.pipeline() if kind == "cluster" else r.pipeline(transaction=True)
for key in "abc":
    p.setex(key, 100, key + "1")
say("pipeline", p.execute())
say("mget", mget("a", "b", "nokey", "c"))
say("del", r.delete("a", "b"))
say("unlink", unlink("b", "c"))

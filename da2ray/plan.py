# THROWAWAY by the lead, to run the pipeline meanwhile: the owner of plan.py overwrites this file.
import hashlib, json, pickle, types
from dataclasses import dataclass
import numpy as np
from da2ray.sources.base import Member
@dataclass
class Shard:
    plan: str; number: int; members: list
    def samples(self): return self.members
class Plan:
    def __init__(self, id, info, all): self.id=id; self.info=info; self.all=all
    def remaining(self, store):
        done={int(k.split("/")[-1].split(".")[0]) for b in store.list("commits/"+self.id) for k in b["key"].to_pylist()}
        return np.array([i for i in range(self.info.shards) if i not in done],dtype=np.int64)
    def samples_in(self, ids): return sum(len(self.all[i]) for i in ids)
    def shards(self, ids): return (Shard(self.id,int(i),self.all[i]) for i in ids)
def plan_id(*a): return hashlib.sha256(json.dumps(a).encode()).hexdigest()[:12]
def make_plan(source, store, *, shard_size, shard_bytes, limit, fingerprint, on_progress=None):
    m=source.members()[:limit]; all=[]; cur=[]; size=0
    for x in m:
        if cur and (len(cur)==shard_size or size+x.size>shard_bytes): all.append(cur); cur=[]; size=0
        cur.append(x); size+=x.size
    if cur: all.append(cur)
    id=plan_id(source.describe(),shard_size,shard_bytes,limit,fingerprint)
    store.put("plans/"+id+".parquet",pickle.dumps(all)); return open_plan(store,id)
def open_plan(store,id):
    try: all=pickle.loads(store.get("plans/"+id+".parquet"))
    except FileNotFoundError: return None
    return Plan(id, types.SimpleNamespace(samples=sum(map(len,all)),shards=len(all),source={"url":"?"}), all)
def list_plans(store): return [open_plan(store,k.split("/")[-1].split(".")[0]) for b in store.list("plans") for k in b["key"].to_pylist()]
def count_plan(*a): return (0,0)

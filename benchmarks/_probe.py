import sys, os, time, json, torch, itertools

from icl_eval.kernels.power import fused, tuning
from icl_eval.kernels.power.tuning import launch as L
from icl_eval.kernels import power_attention
mode=sys.argv[1]
dev="cuda"
V64={"update_state":[L(4,3,COUNT=4,BT=64,STAGES=3),L(4,3,COUNT=2,BT=64,STAGES=3),L(4,2,COUNT=4,BT=32,STAGES=3),L(4,2,COUNT=4,BT=32,STAGES=4),L(4,2,COUNT=2,BT=32,STAGES=4),L(4,2,COUNT=2,BT=64,STAGES=2),L(4,2,COUNT=2,BT=128,STAGES=2),L(8,2,COUNT=4,BT=64,STAGES=3),L(4,2,COUNT=4,BT=64,STAGES=2)],
"forward":[L(8,3,BM=128,BN=64,STAGES=3),L(8,3,BM=128,BN=64,STAGES=4),L(4,3,BM=64,BN=64,STAGES=3),L(4,3,BM=64,BN=64,STAGES=4),L(4,3,BM=128,BN=64,STAGES=3),L(4,3,BM=128,BN=64,STAGES=4),L(8,3,BM=256,BN=64,STAGES=4),L(4,2,BM=64,BN=64,STAGES=4),L(4,2,BM=128,BN=64,STAGES=5)],
"query_gradient":[L(8,3,BM=128,BN=64,STAGES=3),L(8,3,BM=128,BN=64,STAGES=4),L(4,3,BM=64,BN=64,STAGES=3),L(4,3,BM=64,BN=64,STAGES=4),L(4,3,BM=128,BN=64,STAGES=4),L(8,3,BM=256,BN=64,STAGES=4)],
"key_value_gradient":[L(8,3,BK=128,BQ=64,STAGES=3),L(8,3,BK=128,BQ=32,STAGES=4),L(4,3,BK=64,BQ=64,STAGES=3),L(4,3,BK=64,BQ=64,STAGES=4),L(4,3,BK=64,BQ=32,STAGES=3),L(8,2,BK=128,BQ=64,STAGES=4)]}
V32={"update_state":[L(2,3,COUNT=4,BT=64,STAGES=3),L(1,3,COUNT=4,BT=64,STAGES=3),L(2,3,COUNT=8,BT=64,STAGES=3),L(2,3,COUNT=4,BT=32,STAGES=3),L(1,3,COUNT=2,BT=64,STAGES=3)],
"forward":[L(4,3,BM=64,BN=64,STAGES=3),L(4,3,BM=128,BN=64,STAGES=3),L(4,3,BM=64,BN=64,STAGES=4),L(4,3,BM=128,BN=64,STAGES=4),L(8,3,BM=256,BN=64,STAGES=4)],
"query_gradient":[L(4,3,BM=64,BN=64,STAGES=3),L(4,3,BM=128,BN=64,STAGES=3),L(4,3,BM=64,BN=64,STAGES=4),L(4,3,BM=128,BN=64,STAGES=4),L(8,3,BM=256,BN=64,STAGES=4)],
"key_value_gradient":[L(4,3,BK=64,BQ=64,STAGES=3),L(4,3,BK=128,BQ=64,STAGES=3),L(4,3,BK=64,BQ=64,STAGES=4),L(4,3,BK=128,BQ=64,STAGES=4),L(4,3,BK=128,BQ=32,STAGES=4)]}
NAMES={"update_state":"update_state_kernel","forward":"forward_kernel","query_gradient":"query_gradient_kernel","key_value_gradient":"key_value_gradient_kernel"}
def inputs(B,T,H,D,dt=torch.bfloat16):
    g=torch.Generator(device=dev).manual_seed(0)
    q,k,v=(torch.randn(B,T,H,D,device=dev,dtype=torch.float32,generator=g).to(dt).requires_grad_() for _ in range(3))
    lg=torch.nn.functional.logsigmoid(torch.randn(B,T,H,device=dev,generator=g)+4).requires_grad_()
    return q,k,v,lg
def call(x,c,**kw):
    q,k,v,lg=x
    return fused.fused_power_attention(q,k,v,lg,degree=2,scale=q.shape[-1]**-.5,normalization="row_sum",chunk_size=c,initial_state=None,return_state=False)[0]
def setall(D,sel):
    for n,l in sel.items(): tuning.TABLE[("sm90",n,D,D)]=l
def run(D,c,sel,T,reps=4,prof=True):
    setall(D,sel); x=inputs(1,T,12,D); dy=torch.randn_like(x[2])
    for _ in range(2):
        y=call(x,c); torch.autograd.grad(y,x,dy)
    torch.cuda.synchronize()
    if not prof: return
    from torch.profiler import profile, ProfilerActivity
    with profile(activities=[ProfilerActivity.CUDA]) as p:
        for _ in range(reps):
            y=call(x,c); torch.autograd.grad(y,x,dy)
        torch.cuda.synchronize()
    out={}
    for e in p.events():
        if e.device_type.name=="CUDA": out.setdefault(e.name,[]).append(e.device_time)
    return {k:(sorted(v)[len(v)//2],len(v)/reps) for k,v in out.items()}
def sets(V):
    n=max(len(v) for v in V.values())
    return [{k:v[i%len(v)] for k,v in V.items()} for i in range(n)]
ALL=[(64,1024,s) for s in sets(V64)]+[(32,512,s) for s in sets(V32)]
if mode=="warm":
    i,n=int(sys.argv[2]),int(sys.argv[3])
    for D,c,s in ALL[i::n]:
        for k in s:  # each alone so that one failure does not hide others
            pass
        try: run(D,c,s,4096,prof=False)
        except Exception as e: print("FAIL",D,{k:v.options for k,v in s.items()},repr(e)[:300],flush=True)
elif mode=="time":
    for D,c,s in ALL:
        try: r=run(D,c,s,65536)
        except Exception as e: print("FAIL",D,repr(e)[:200]); continue
        for k,l in s.items():
            t=[(v[0],v[1]) for n,v in r.items() if NAMES[k]==n]
            print(f"d{D} {k:20s} {l.options} : {t}",flush=True)
        other={n[:40]:(round(v[0]),v[1]) for n,v in r.items() if n not in NAMES.values()}
        print("   total us",round(sum(v[0]*v[1] for v in r.values())),other,flush=True)
elif mode=="right":
    from tests.kernels.cases import Case, outputs_and_gradients, relative_errors
    def fusedf(q,k,v,log_g=None,*,degree=2,scale=None,normalization="row_sum",chunk_size=None,initial_state=None,return_state=False):
        y,st=fused.fused_power_attention(q,k,v,log_g,degree=degree,scale=q.shape[-1]**-.5,normalization=normalization,chunk_size=chunk_size or 1024,initial_state=initial_state,return_state=return_state)
        return (y,st) if return_state else y
    b=Case(B=2,T=500,H=4,Hk=2,D=64,V=64,chunk_size=128)
    cases={"p2-64":b,"p2-32":b.with_(D=32,V=32),"p2-16":b.with_(D=16,V=16),"p2-128":b.with_(D=128,V=128,B=1),"p1":b.with_(degree=1,normalization="none"),"none":b.with_(normalization="none"),"nogate-nostate":b.with_(gated=False,stateful=False),"attn":b.with_(stateful=False,chunk_size=512),"p3":b.with_(degree=3,normalization="none",stateful=False,chunk_size=512),"p4":b.with_(degree=4,stateful=False,chunk_size=512),"DV":b.with_(D=32,V=64),"odd":b.with_(D=48,V=80),"T1":b.with_(T=1),"T63":b.with_(T=63),"T4097":b.with_(T=4097,B=1,chunk_size=1024)}
    dts={"bf16":torch.bfloat16,"fp32":torch.float32,"fp16":torch.float16}
    want=sys.argv[2].split(",")
    for dn in want:
        for n,c in cases.items():
            t0=time.time()
            try:
                x=c.inputs(dtype=dts[dn],device=dev)
                exp=outputs_and_gradients(power_attention,c,{a:t.double() for a,t in x.items()},backend="reference")
                got=outputs_and_gradients(fusedf,c,x)
                got2=outputs_and_gradients(fusedf,c,x)
                same=all(torch.equal(got[a],got2[a]) for a in got)
                ref=outputs_and_gradients(power_attention,c,x,backend="reference") if dn!="fp32" else exp
                e=relative_errors(got,exp); r=relative_errors(ref,exp)
                print(dn,n,"same" if same else "DIFFERS",{a:f"{e[a]:.1e}/{r[a]:.0e}" for a in e},f"{time.time()-t0:.1f}s",flush=True)
            except Exception as ex: print(dn,n,"FAIL",repr(ex)[:400],flush=True)

mkdir -p /tmp/shim/icl_eval; for f in $PWD/icl_eval/*; do ln -sfn $f /tmp/shim/icl_eval/; done
for d in kernels models tasks experiments; do ln -sfn $PWD/$d /tmp/shim/icl_eval/$d; done; ln -sfn $PWD/tests /tmp/shim/tests; export PYTHONPATH=/tmp/shim PYTHONUNBUFFERED=1 PYTHONSAFEPATH=1

#!/usr/bin/env bash
# What a job runs, from the data to the report:  suite.sh checkout|copy SUITE DATASET...
#
# In a checkout through DVC. A copy of the code, which Ray ships or an image holds, is no repository, and is gone
# afterwards: its report goes to the run store. Its datasets are in $DATASETS on every node, or in the copy.
set -euo pipefail
where=$1 suite=$2
shift 2
python -m pipelines.suite "$suite"

if [[ $where == checkout ]]; then
    dvc repro fetch
    python -m pipelines.train
    dvc repro
    exit
fi

if [[ ${DATASETS-} ]]; then
    mkdir -p "$DATASETS"
    [[ -L datasets ]] || rm -rf datasets  # of an earlier job in the same copy
    ln -sfn "$DATASETS" datasets
fi
for name in "$@"; do
    [[ -e datasets/$name/meta.json ]] || python -m pipelines.fetch "$name"
done
for stage in train evaluate compare; do
    python -m pipelines.$stage
done
cp -r report "$RUN_STORE"
echo "This copy is gone soon; the report stays: $RUN_STORE/report/index.html"

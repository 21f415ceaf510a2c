#!/bin/sh
# From LFW's training identities to eDifFIQA-T, DifFIQA(R), FaceQAN(R) and regressors of optimised labels, and their tables
# in docs/evaluation.md beside the default model and the peers. The shipped eDifFIQA-T is made on the way: `make ediffiqa`.
#
#     benchmarks/quality_labels.sh [DATA [OUTPUT]]     default: ../shared/data runs/quality_labels
#
# What exists in OUTPUT is kept, so a call that was stopped goes on. No face of CelebA or of LFW's test identities is
# used before the evaluation. All labels and networks come from foamliu's FR model, so the tables keep them apart where
# that model judges. It takes about an hour of one core, half of it for the diffusion model. Before it:
# `benchmarks/evaluation_table.sh`, whose embeddings and scores in runs/evaluation are used, those of the default model too
# (on CelebA the cross-fitted ones).
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
data=${1:-../shared/data}
output=${2:-runs/quality_labels}
evaluation=${EVALUATION:-runs/evaluation}
fr=$data/fr/mobilefacenet_foamliu.safetensors
networks="ediffiqa-t-head ediffiqa-t ediffiqa-t-seed-1 ediffiqa-t-epsilon-0"
networks="$networks diffiqa-r diffiqa-r-epsilon-0.1 faceqan-r faceqan-r-epsilon-0.1"
networks="$networks diffiqa-r-frozen diffiqa-r-frozen-epsilon-0.1"
default=clib-fiqa@foamliu
. benchmarks/judge.sh
mkdir -p "$output"

made() { [ -e "$output/$1" ]; }

# -- Labels --
# 3,407 photographs of 629 identities, and a damaged version of each photograph. DifFIQA labels the first 3,000 images.
made faces || "$python" -m recipes.ediffiqa_t.make_faces --data "$data" --output "$output/faces" --min-images 3 --most 10
find "$output/faces" -type f | LC_ALL=C sort > "$output/images.txt"
head -3000 "$output/images.txt" > "$output/diffiqa.txt"
# FaceQAN looks a hundred times at each image: two photographs of 128 identities, and a damaged version of each.
made few || "$python" -m recipes.ediffiqa_t.make_faces --data "$data" --output "$output/few" --most 5
find "$output/few" -type f | LC_ALL=C sort | awk -F / '++count[$(NF - 1)] <= 4' > "$output/few.txt"
head -512 "$output/few.txt" > "$output/faceqan.txt"
embed() {  # images, output
    made "$2" || "$python" evaluate.py embed "@$1" --fr "$fr" --output "$output/$2" --resume
}
cluster() {  # embeddings, output
    made "$2" || "$python" -m methods.label_optimization.cluster --embeddings "$output/$1" --output "$output/$2"
}
embed "$output/images.txt" embeddings.npz
embed "$output/few.txt" few.npz
cluster embeddings.npz clusters.tsv
cluster few.npz few-clusters.tsv
made diffusion/done || {
    resume=""; [ ! -f "$output/diffusion/state.safetensors" ] || resume=--resume
    "$python" -m methods.diffiqa.train --data "$data/faces/lfw" --identities "$data/splits/lfw_train_identities.txt" \
        --output "$output/diffusion" --preset small --width 16 --lr 1e-3 --steps 1800 $resume
    touch "$output/diffusion/done"
}
diffiqa() {  # images, output
    made "$2" || "$python" -m methods.diffiqa.score "@$1" --preset fast --align no --fr "$fr" \
        --weights "$output/diffusion/diffusion.safetensors" --output "$output/$2" --resume
}
diffiqa "$output/diffiqa.txt" diffiqa.csv
made faceqan.csv || "$python" evaluate.py baseline faceqan "@$output/faceqan.txt" --fr "$fr" --batch-size 2 \
    --output "$output/faceqan.csv" --resume
optimise() {  # labels, epsilon, embeddings, clusters
    made "$1-epsilon-$2.tsv" || "$python" -m methods.label_optimization.optimize --epsilon "$2" --scores "$output/$1.csv" \
        --embeddings "$output/$3" --clusters "$output/$4" --output "$output/$1-epsilon-$2.tsv"
}
optimise diffiqa 0.001 embeddings.npz clusters.tsv  # published; moves an image by 7 of 3,000 places: no network learns it
optimise diffiqa 0.1 embeddings.npz clusters.tsv
optimise faceqan 0.1 few.npz few-clusters.tsv
# The teacher of the shipped network costs an embedding an image: its length, and similarity to the person's other images.
for name in norm oracle; do
    made $name.csv || "$python" evaluate.py baseline $name --embeddings "$output/embeddings.npz" --output "$output/$name.csv"
done
made mean.csv || "$python" -m recipes.ediffiqa_t.mean_ranks "$output/oracle.csv" "$output/norm.csv" \
    --output "$output/mean.csv"

# -- Networks --
resumed() { [ ! -f "$output/$1/state.safetensors" ] || echo --resume; }
ediffiqa() {  # name, labels, further settings
    name=$1; labels=$2; shift 2
    ! made "$name/done" || return 0
    "$python" -m methods.ediffiqa.prepare --scores "$output/$labels" --beta 0.5 --min-images 1 \
        --embeddings "$output/embeddings.npz" --output "$output/$name/items"
    # shellcheck disable=SC2046 - a flag or nothing
    "$python" -m methods.ediffiqa.train --items "$output/$name/items" --images . --teacher "$output/embeddings.npz" \
        --start-weights "$fr" --batch-size 32 --epochs 2 --schedule cosine --output "$output/$name" $(resumed "$name") "$@"
    touch "$output/$name/done"
}
regressor() {  # name, labels, further settings
    name=$1; labels=$2; shift 2
    ! made "$name/done" || return 0
    # shellcheck disable=SC2046
    "$python" -m methods.label_optimization.train --labels "$output/$labels" --images . --backbone "$fr" --batch-size 16 \
        --lr 3e-3 --epochs 2 --validations 2 --output "$output/$name" $(resumed "$name") "$@"
    touch "$output/$name/done"
}
mkdir -p "$output/ediffiqa-t-head"
made ediffiqa-t-head/ediffiqa.safetensors || "$python" -m recipes.ediffiqa_t.fit_head --backbone "$fr" \
    --embeddings "$output/embeddings.npz" --scores "$output/mean.csv" --output "$output/ediffiqa-t-head/ediffiqa.safetensors"
ediffiqa ediffiqa-t diffiqa.csv
regressor diffiqa-r diffiqa.csv
regressor diffiqa-r-epsilon-0.1 diffiqa-epsilon-0.1.tsv
regressor diffiqa-r-frozen diffiqa.csv --batch-norm frozen
regressor diffiqa-r-frozen-epsilon-0.1 diffiqa-epsilon-0.1.tsv --batch-norm frozen
ediffiqa ediffiqa-t-epsilon-0 diffiqa.csv --epsilon 0
ediffiqa ediffiqa-t-seed-1 diffiqa.csv --seed 1
regressor faceqan-r faceqan.csv --epochs 5 --validations 1
regressor faceqan-r-epsilon-0.1 faceqan-epsilon-0.1.tsv --epochs 5 --validations 1

# -- Scores and tables --
for set in celeba_dev lfw_test lfw_unseen; do
    folder=$output/$set
    mkdir -p "$folder/scores"
    for name in $default norm@foamliu lightqnet scrfd sobel; do
        # The cross-fitted scores are of CFP too, which these sets leave out.
        [ ! -f "$evaluation/$set/scores/$name.csv" ] || grep -v 'faces/cfp/' "$evaluation/$set/scores/$name.csv" \
            > "$folder/scores/$name.csv"
    done
    for network in $networks; do
        weights=$output/$network/ediffiqa.safetensors
        [ -f "$weights" ] || weights=$output/$network/regressor.safetensors
        scores=$folder/scores/$network@foamliu.csv
        [ -f "$scores" ] || "$python" inference.py "@$evaluation/$set/images.txt" --align no --weights "$weights" --output "$scores"
    done
    for network in ediffiqa-t-head ediffiqa-t; do  # the averages with the default model
        "$python" -m recipes.ediffiqa_t.mean_ranks "$folder/scores/$default.csv" "$folder/scores/$network@foamliu.csv" \
            --output "$folder/scores/$network+clib-fiqa@foamliu.csv"
    done
    pairs=$data/pairs/$set.tsv
    [ $set != lfw_unseen ] || pairs=$data/pairs/lfw_test.tsv
    # shellcheck disable=SC2046 - one word a table
    judge "$pairs" "$evaluation/$set" --scores $(tables "$folder")
done

# DifFIQA itself, on the 40 identities of CelebA on which benchmarks/evaluation_table.sh judges FaceQAN.
few=$evaluation/celeba_few
folder=$output/celeba_few
mkdir -p "$folder/scores"
diffiqa "$few/images.txt" celeba_few/scores/diffiqa@foamliu.csv
# shellcheck disable=SC2046
judge "$few/pairs.tsv" "$evaluation/celeba_dev" --scores $(tables "$output/celeba_dev") $(tables "$folder")

report() {
    "$python" -m recipes.default_model.reports.edc_tables --results results --command benchmarks/quality_labels.sh \
        "$@" --weights ediffiqa clib-fiqa
}
report "quality_labels_celeba=$output/celeba_dev" "quality_labels_lfw=$output/lfw_test" \
    "quality_labels_lfw_unseen=$output/lfw_unseen" "quality_labels_celeba_few=$output/celeba_few"
sets=$output/celeba_dev,$output/lfw_test,$output/lfw_unseen
for method in ediffiqa-t-head ediffiqa-t diffiqa-r-epsilon-0.1 diffiqa-r-frozen-epsilon-0.1 faceqan-r-epsilon-0.1; do
    report "quality_labels_differences_$method=$sets" --against "$method@foamliu"
done
report "quality_labels_few_differences_diffiqa=$output/celeba_few" --against diffiqa@foamliu
"$python" -m docs.render_tables

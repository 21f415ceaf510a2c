#!/bin/sh
# From LFW's training identities to eDifFIQA-T, DifFIQA(R) and regressors of optimised labels, and their table beside the
# default model and the peers.
#
#     benchmarks/quality_labels.sh [DATA [OUTPUT [IMAGES]]]     default: ../shared/data runs/quality_labels 8
#
# IMAGES is the number of photographs that an identity needs to take part. What exists in OUTPUT is kept, so a call that
# was stopped goes on. No image of CelebA or of LFW's test identities is used before the evaluation. All labels and
# networks come from foamliu's FR model, so the tables keep them apart where that model judges. Hours on two cores:
# FaceQAN and DifFIQA look at each image many times. Not run to its end yet (docs/log.md, 2026-11-25). Before it:
# `benchmarks/evaluation_table.sh`, whose embeddings and scores in runs/evaluation it uses.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
data=${1:-../shared/data}
output=${2:-runs/quality_labels}
least=${3:-8}
evaluation=${EVALUATION:-runs/evaluation}
fr=$data/fr/mobilefacenet_foamliu.safetensors
mkdir -p "$output"

# -- Labels --
while read -r name; do
    [ "$(find "$data/faces/lfw/$name" -name '*.jpg' | wc -l)" -lt "$least" ] || find "$data/faces/lfw/$name" -name '*.jpg'
done < "$data/splits/lfw_train_identities.txt" | sort > "$output/images.txt"
[ -f "$output/embeddings.npz" ] || "$python" evaluate.py embed "@$output/images.txt" --fr "$fr" --output "$output/embeddings.npz" --resume
[ -f "$output/clusters.tsv" ] || "$python" -m methods.label_optimization.cluster --embeddings "$output/embeddings.npz" \
    --output "$output/clusters.tsv"
[ -f "$output/diffusion/done" ] || {
    resume=""; [ ! -f "$output/diffusion/state.safetensors" ] || resume=--resume
    "$python" -m methods.diffiqa.train --data "$data/faces/lfw" --identities "$data/splits/lfw_train_identities.txt" \
        --output "$output/diffusion" --preset small --width 16 --lr 1e-3 $resume
    touch "$output/diffusion/done"
}
[ -f "$output/diffiqa.csv" ] || "$python" -m methods.diffiqa.score "@$output/images.txt" --preset fast --fr "$fr" \
    --weights "$output/diffusion/diffusion.safetensors" --output "$output/diffiqa.csv" --resume
[ -f "$output/faceqan.csv" ] || "$python" evaluate.py baseline faceqan "@$output/images.txt" --fr "$fr" --batch-size 2 \
    --output "$output/faceqan.csv" --resume
for labels in diffiqa faceqan; do
    [ -f "$output/$labels-optimised.tsv" ] || "$python" -m methods.label_optimization.optimize --scores "$output/$labels.csv" \
        --embeddings "$output/embeddings.npz" --clusters "$output/clusters.tsv" --output "$output/$labels-optimised.tsv"
done

# -- Networks --
for epsilon in 0 0.5; do  # 0: the labels as they are
    folder=$output/ediffiqa-t-$epsilon
    [ -d "$output/items" ] || "$python" -m methods.ediffiqa.prepare --scores "$output/diffiqa.csv" --beta 0.5 --min-images 3 \
        --embeddings "$output/embeddings.npz" --output "$output/items"
    [ -f "$folder/ediffiqa.safetensors" ] || "$python" -m methods.ediffiqa.train --items "$output/items" --images . \
        --teacher "$output/embeddings.npz" --start-weights "$fr" --epsilon $epsilon --output "$folder"
done
regressor() {  # name, labels
    [ -f "$output/$1/regressor.safetensors" ] || "$python" -m methods.label_optimization.train --labels "$2" --backbone "$fr" \
        --output "$output/$1" --epochs 3
}
for labels in diffiqa faceqan; do
    regressor "$labels-r" "$output/$labels.csv"
    regressor "$labels-r-optimised" "$output/$labels-optimised.tsv"
done

# -- Scores and tables --
for set in celeba_dev lfw_test; do
    folder=$output/$set
    mkdir -p "$folder/scores"
    cp "$evaluation/$set/scores/"*.csv "$folder/scores/"
    for network in ediffiqa-t-0 ediffiqa-t-0.5 diffiqa-r diffiqa-r-optimised faceqan-r faceqan-r-optimised; do
        weights=$(ls "$output/$network/"*iqa.safetensors "$output/$network/regressor.safetensors" 2> /dev/null | head -1)
        scores=$folder/scores/$network@foamliu.csv
        [ -f "$scores" ] || "$python" inference.py "@$evaluation/$set/images.txt" --align no --weights "$weights" --output "$scores"
    done
    scores=""
    for file in "$folder"/scores/*.csv; do scores="$scores $(basename "$file" .csv)=$file"; done
    # shellcheck disable=SC2086 - one word a table
    "$python" evaluate.py edc --pairs "$data/pairs/$set.tsv" --embeddings "foamliu=$evaluation/$set/foamliu.npz" \
        "faceplugin=$evaluation/$set/faceplugin.npz" "dlib=$evaluation/$set/dlib.npz" --fmr 1e-2 1e-3 --output "$folder" \
        --against clib-fiqa@foamliu --scores $scores
done

#!/bin/sh
# From LFW's training identities to eDifFIQA-T, DifFIQA(R) and regressors of optimised labels, and their tables in
# docs/evaluation.md beside the default model and the peers. The shipped eDifFIQA-T is made on the way: `make ediffiqa`.
#
#     benchmarks/quality_labels.sh [DATA [OUTPUT]]     default: ../shared/data runs/quality_labels
#
# What exists in OUTPUT is kept, so a call that was stopped goes on. No face of CelebA or of LFW's test identities is
# used before the evaluation. All labels and networks come from foamliu's FR model, so the tables keep them apart where
# that model judges. It takes about an hour and a half of one core. Before it: `benchmarks/evaluation_table.sh`, whose
# embeddings and scores in runs/evaluation are used, those of the default model too (on CelebA the cross-fitted ones).
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
data=${1:-../shared/data}
output=${2:-runs/quality_labels}
evaluation=${EVALUATION:-runs/evaluation}
fr=$data/fr/mobilefacenet_foamliu.safetensors
networks="ediffiqa-t-head ediffiqa-t ediffiqa-t-epsilon-0 ediffiqa-t-published-norms ediffiqa-t-mean"
networks="$networks diffiqa-r diffiqa-r-optimised faceqan-r faceqan-r-optimised"
default=clib-fiqa@foamliu
mkdir -p "$output"

made() { [ -e "$output/$1" ]; }
embed() {  # faces, output
    "$python" evaluate.py embed "$1" --fr "$fr" --output "$output/$2" --resume
}

# -- Labels --
# Two photographs of each of the 151 identities with eight or more, and a damaged version of each photograph.
made faces || "$python" -m recipes.ediffiqa_t.make_faces --data "$data" --output "$output/faces" --most 5
find "$output/faces" -type f | LC_ALL=C sort | awk -F / '++count[$(NF - 1)] <= 4' > "$output/images.txt"
head -512 "$output/images.txt" > "$output/faceqan.txt"  # 128 identities: it looks a hundred times at each image
made embeddings.npz || embed "@$output/images.txt" embeddings.npz
made clusters.tsv || "$python" -m methods.label_optimization.cluster --embeddings "$output/embeddings.npz" \
    --output "$output/clusters.tsv"
made diffusion/done || {
    resume=""; [ ! -f "$output/diffusion/state.safetensors" ] || resume=--resume
    "$python" -m methods.diffiqa.train --data "$data/faces/lfw" --identities "$data/splits/lfw_train_identities.txt" \
        --output "$output/diffusion" --preset small --width 16 --lr 1e-3 --steps 1800 $resume
    touch "$output/diffusion/done"
}
made diffiqa.csv || "$python" -m methods.diffiqa.score "@$output/images.txt" --repeats 2 --ddim-steps 3 --fr "$fr" \
    --weights "$output/diffusion/diffusion.safetensors" --output "$output/diffiqa.csv" --resume
made faceqan.csv || "$python" evaluate.py baseline faceqan "@$output/faceqan.txt" --fr "$fr" --batch-size 2 \
    --output "$output/faceqan.csv" --resume
for labels in diffiqa faceqan; do  # 0.001, the published epsilon, would hardly move one of so few images
    made $labels-optimised.tsv || "$python" -m methods.label_optimization.optimize --epsilon 0.1 \
        --scores "$output/$labels.csv" --embeddings "$output/embeddings.npz" --clusters "$output/clusters.tsv" \
        --output "$output/$labels-optimised.tsv"
done
baseline() {  # name, embeddings, output
    made "$3" || "$python" evaluate.py baseline "$1" --embeddings "$output/$2" --output "$output/$3"
}
mean_ranks() {  # output, tables
    out=$output/$1; shift
    [ -f "$out" ] || "$python" -m recipes.ediffiqa_t.mean_ranks "$@" --output "$out"
}
baseline norm embeddings.npz norm.csv
mean_ranks mean.csv "$output/diffiqa-optimised.tsv" "$output/norm.csv"
# The teacher of the shipped network, which costs an embedding an image: 3,407 photographs and as many damaged versions.
made large || "$python" -m recipes.ediffiqa_t.make_faces --data "$data" --output "$output/large" --min-images 3 --most 10
made large.npz || embed "$output/large" large.npz
baseline oracle large.npz large-oracle.csv
baseline norm large.npz large-norm.csv
mean_ranks large-mean.csv "$output/large-oracle.csv" "$output/large-norm.csv"

# -- Networks --
resumed() { [ ! -f "$output/$1/state.safetensors" ] || echo --resume; }
ediffiqa() {  # name, labels, further settings
    name=$1; labels=$2; teacher=$output/embeddings.npz; shift 2
    ! made "$name/done" || return 0
    "$python" -m methods.ediffiqa.prepare --scores "$output/$labels" --beta 0.5 --min-images 1 --embeddings "$teacher" \
        --output "$output/$name/items"
    # shellcheck disable=SC2046 - a flag or nothing
    "$python" -m methods.ediffiqa.train --items "$output/$name/items" --images . --teacher "$teacher" \
        --start-weights "$fr" --batch-size 32 --epochs 10 --schedule cosine --output "$output/$name" $(resumed "$name") "$@"
    touch "$output/$name/done"
}
regressor() {  # name, labels
    ! made "$1/done" || return 0
    # shellcheck disable=SC2046
    "$python" -m methods.label_optimization.train --labels "$output/$2" --images . --backbone "$fr" --batch-size 16 \
        --lr 3e-3 --epochs 5 --validations 1 --output "$output/$1" $(resumed "$1")
    touch "$output/$1/done"
}
mkdir -p "$output/ediffiqa-t-head"
made ediffiqa-t-head/ediffiqa.safetensors || "$python" -m recipes.ediffiqa_t.fit_head --backbone "$fr" \
    --embeddings "$output/large.npz" --scores "$output/large-mean.csv" --output "$output/ediffiqa-t-head/ediffiqa.safetensors"
ediffiqa ediffiqa-t diffiqa.csv
ediffiqa ediffiqa-t-epsilon-0 diffiqa.csv --epsilon 0
ediffiqa ediffiqa-t-published-norms diffiqa.csv --batch-norm published
ediffiqa ediffiqa-t-mean mean.csv
for labels in diffiqa faceqan; do
    regressor $labels-r $labels.csv
    regressor $labels-r-optimised $labels-optimised.tsv
done

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
    for network in ediffiqa-t-head ediffiqa-t; do  # the averages with the default model, where its scores are
        [ ! -f "$folder/scores/$default.csv" ] || "$python" -m recipes.ediffiqa_t.mean_ranks "$folder/scores/$default.csv" \
            "$folder/scores/$network@foamliu.csv" --output "$folder/scores/$network+clib-fiqa@foamliu.csv"
    done
    scores=""
    for file in "$folder"/scores/*.csv; do scores="$scores $(basename "$file" .csv)=$file"; done
    pairs=$set; [ $set != lfw_unseen ] || pairs=lfw_test
    # shellcheck disable=SC2086 - one word a table
    "$python" evaluate.py edc --pairs "$data/pairs/$pairs.tsv" --embeddings "foamliu=$evaluation/$set/foamliu.npz" \
        "faceplugin=$evaluation/$set/faceplugin.npz" "dlib=$evaluation/$set/dlib.npz" --fmr 1e-2 1e-3 --output "$folder" \
        --scores $scores
done
report() {
    "$python" -m recipes.default_model.reports.edc_tables --results results --command benchmarks/quality_labels.sh \
        "$@" --weights ediffiqa clib-fiqa
}
report "quality_labels_celeba=$output/celeba_dev" "quality_labels_lfw=$output/lfw_test" \
    "quality_labels_lfw_unseen=$output/lfw_unseen"
sets=$output/celeba_dev,$output/lfw_test,$output/lfw_unseen
for method in ediffiqa-t-head ediffiqa-t diffiqa-r-optimised faceqan-r-optimised; do
    report "quality_labels_differences_$method=$sets" --against "$method@foamliu"
done
"$python" -m docs.render_tables

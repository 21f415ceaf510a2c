#!/bin/sh
# The tables of docs/evaluation.md: default model, CR-FIQA, baselines and peers under three FR models, on three sets.
#
#     benchmarks/evaluation_table.sh [DATA [OUTPUT]]        default: ../shared/data runs/evaluation
#
# It takes an hour and a half on two cores. Files that exist in OUTPUT are kept, so a second call is quick. After a change of
# weights give another OUTPUT, or delete their scores. Run `make cross-fit` before it, because the shipped models were
# trained on CelebA, and the training and fit_head of CR-FIQA (docs/anchors.md). A method that uses an FR model, or was
# trained with its help, is named METHOD@MODEL. The tables keep it apart where that model judges.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
data=${1:-../shared/data}
output=${2:-runs/evaluation}
cross_fit=${CROSS_FIT:-runs/cross_fit.csv}  # of CelebA and CFP
cr_fiqa=${CR_FIQA:-runs/cr_fiqa/fitted.pth}
foamliu=$data/fr/mobilefacenet_foamliu
faceplugin=$data/fr/faceplugin_fr_feature
. benchmarks/judge.sh

embed() {  # name, FR model; of the images of $folder
    [ -f "$folder/$1.npz" ] || "$python" evaluate.py embed "@$folder/images.txt" --fr "$2" --output "$folder/$1.npz" --resume
}
baseline() {  # name of the scores, baseline, flags; of the images of $folder
    scores=$folder/scores/$1.csv; name=$2; shift 2
    [ -f "$scores" ] || "$python" evaluate.py baseline "$name" "@$folder/images.txt" --output "$scores" --resume "$@"
}
judges() {  # embeddings of each FR model, and what needs no more, for the images of $folder
    embed foamliu "$foamliu.onnx"
    embed faceplugin "$faceplugin.onnx"
    embed dlib dlib
    for model in foamliu faceplugin dlib; do
        for name in norm oracle; do
            scores=$folder/scores/$name@$model.csv
            [ -f "$scores" ] || "$python" evaluate.py baseline $name --embeddings "$folder/$model.npz" --output "$scores"
        done
    done
}

methods() {  # what can score any image, for the images of $folder
    judges
    for name in random sobel brightness; do
        baseline $name $name
    done
    baseline flip@foamliu flip --fr "$foamliu.safetensors"
    [ -f "$folder/scores/cr-fiqa@foamliu.csv" ] || "$python" inference.py "@$folder/images.txt" --align no \
        --method cr-fiqa --weights "$cr_fiqa" --output "$folder/scores/cr-fiqa@foamliu.csv"
    [ -f "$folder/scores/clib-fiqa@foamliu.csv" ] || "$python" inference.py "@$folder/images.txt" --align no \
        --output "$folder/scores/clib-fiqa@foamliu.csv"
}

for set in celeba_dev lfw_test; do
    folder=$output/$set
    mkdir -p "$folder/scores"
    tail -n +2 "$data/pairs/$set.tsv" | cut -f 1,2 | tr '\t' '\n' | sort -u | sed "s|^|$data/|" > "$folder/images.txt"
    cp "$data/peer_scores/lightqnet_dm100_$set.csv" "$folder/scores/lightqnet.csv"
    cp "$data/peer_scores/scrfd_score_$set.csv" "$folder/scores/scrfd.csv"
    if [ $set = celeba_dev ]; then
        cp "$cross_fit" "$folder/scores/clib-fiqa@foamliu.csv"
    fi
    methods
    for name in noise grafiqs; do  # slow ones: not on the third set
        baseline $name@foamliu $name --fr "$foamliu.safetensors"
    done
    [ $set != celeba_dev ] || baseline serfiq@foamliu serfiq --fr "$cr_fiqa"  # a hundred passes an image
    # shellcheck disable=SC2046 - one word a table
    judge "$data/pairs/$set.tsv" "$folder" --images "$data/faces" --scores $(tables "$folder")
done

# CFP, frontal to profile. The baselines are those that need no pass over the images.
folder=$output/cfp
mkdir -p "$folder/scores"
"$python" -m recipes.default_model.reports.profile_pairs --data "$data" --output "$output/cfp_profiles.tsv"
ls "$data"/faces/cfp/*/*.jpg > "$folder/images.txt"
cp "$data/peer_scores/lightqnet_dm100_cfp.csv" "$folder/scores/lightqnet.csv"
cp "$cross_fit" "$folder/scores/clib-fiqa@foamliu.csv"
judges
# shellcheck disable=SC2046
judge "$output/cfp_profiles.tsv" "$folder" --images "$data/faces" --scores $(tables "$folder")

# LFW's test identities again, every tenth face with damage of kinds that no training used.
folder=$output/lfw_unseen
mkdir -p "$folder/scores"
[ -d "$folder/faces" ] || "$python" -m recipes.default_model.reports.unseen --data "$data" --output "$folder/faces"
sed "s|^$data/faces/|$folder/faces/|" "$output/lfw_test/images.txt" > "$folder/images.txt"
methods
# shellcheck disable=SC2046
judge "$data/pairs/lfw_test.tsv" "$folder" --images "$data/faces" --scores $(tables "$folder")

# FaceQAN runs its network a hundred times an image: all methods again, with it, on 40 of CelebA's 149 identities.
all=$output/celeba_dev
folder=$output/celeba_few
mkdir -p "$folder/scores"
sed 's|/[^/]*$|/|' "$all/images.txt" | sort -u | head -40 > "$folder/identities.txt"
grep -F -f "$folder/identities.txt" "$all/images.txt" > "$folder/images.txt"
awk -F '\t' -v data="$data/" 'NR == FNR { few[$1]; next } FNR == 1 || (data $1 in few && data $2 in few)' \
    "$folder/images.txt" "$data/pairs/celeba_dev.tsv" > "$folder/pairs.tsv"
baseline faceqan@foamliu faceqan --fr "$foamliu.safetensors" --batch-size 2
# shellcheck disable=SC2046
judge "$folder/pairs.tsv" "$all" --images "$data/faces" --scores $(tables "$all") $(tables "$folder")

# The tables of the docs (`make docs-tables` renders them).
report() { "$python" -m recipes.default_model.reports.edc_tables --results results "$@"; }
report "edc_celeba=$output/celeba_dev" "edc_lfw=$output/lfw_test" "edc_lfw_unseen=$output/lfw_unseen" \
    "edc_celeba_few=$output/celeba_few" "edc_cfp=$output/cfp" --excerpt comparison --weights clib-fiqa
report "edc_differences=$output/celeba_dev,$output/cfp,$output/lfw_test,$output/lfw_unseen" --against clib-fiqa@foamliu \
    --weights clib-fiqa

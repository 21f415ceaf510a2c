#!/bin/sh
# The table of docs/evaluation.md: default model, baselines and peers under three FR models, on two sets.
#
#     benchmarks/evaluation_table.sh [DATA [OUTPUT]]        default: ../shared/data runs/evaluation
#
# About two hours on two cores, half of it FaceQAN's; what exists in OUTPUT is kept, so a second call is quick.
# A method that uses an FR model (or was trained with its help, as the default model was with foamliu's) is named
# METHOD@MODEL, and the tables keep it apart where that model judges.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
data=${1:-../shared/data}
output=${2:-runs/evaluation}
foamliu=$data/fr/mobilefacenet_foamliu
faceplugin=$data/fr/faceplugin_fr_feature

for set in celeba_dev lfw_test; do
    folder=$output/$set
    pairs=$data/pairs/$set.tsv
    mkdir -p "$folder/scores"
    tail -n +2 "$pairs" | cut -f 1,2 | tr '\t' '\n' | sort -u | sed "s|^|$data/|" > "$folder/images.txt"

    embed() {  # name, FR model
        [ -f "$folder/$1.npz" ] || "$python" evaluate.py embed "@$folder/images.txt" --fr "$2" --output "$folder/$1.npz" --resume
    }
    baseline() {  # name of the scores, baseline, flags
        scores=$folder/scores/$1.csv; name=$2; shift 2
        [ -f "$scores" ] || "$python" evaluate.py baseline "$name" "@$folder/images.txt" --output "$scores" --resume "$@"
    }

    embed foamliu "$foamliu.onnx"
    embed faceplugin "$faceplugin.onnx"
    embed dlib dlib

    cp "$data/peer_scores/lightqnet_dm100_$set.csv" "$folder/scores/lightqnet.csv"
    cp "$data/peer_scores/scrfd_score_$set.csv" "$folder/scores/scrfd.csv"
    [ -f "$folder/scores/clib-fiqa@foamliu.csv" ] ||
        "$python" inference.py "@$folder/images.txt" --align no --output "$folder/scores/clib-fiqa@foamliu.csv"
    for name in random sobel brightness; do
        baseline $name $name
    done
    for model in foamliu faceplugin dlib; do
        for name in norm oracle; do
            scores=$folder/scores/$name@$model.csv
            [ -f "$scores" ] || "$python" evaluate.py baseline $name --embeddings "$folder/$model.npz" --output "$scores"
        done
    done
    for name in flip noise; do
        baseline $name@foamliu $name --fr "$foamliu.safetensors"
    done
    baseline grafiqs@foamliu grafiqs --fr "$foamliu.safetensors"
    if [ $set = celeba_dev ]; then  # the set that can tell methods apart; an hour and more
        baseline faceqan@foamliu faceqan --fr "$foamliu.safetensors"
    fi

    scores=$(cd "$folder/scores" && for file in *.csv; do echo "${file%.csv}=$folder/scores/$file"; done)
    # shellcheck disable=SC2086 - one word a table
    "$python" evaluate.py edc --pairs "$pairs" --scores $scores --embeddings "foamliu=$folder/foamliu.npz" \
        "faceplugin=$folder/faceplugin.npz" "dlib=$folder/dlib.npz" --fmr 1e-2 1e-3 --images "$data/faces" --output "$folder"
done

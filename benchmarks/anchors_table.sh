#!/bin/sh
# The tables of docs/anchors.md: quality anchors of a CR-FIQA header and of FR models with class centres.
#
#     benchmarks/anchors_table.sh BACKBONE.pth [DATA [TABLES [OUTPUT]]]    default: ../shared/data runs/default runs/anchors
#
# BACKBONE is {step}backbone.pth of methods.cr_fiqa.train, with {step}header.pth and {step}classes.txt beside it, and
# fitted.pth of methods.cr_fiqa.fit_head. TABLES is the folder that `make tables` writes. benchmarks/evaluation_table.sh must
# have run before. Files that exist in OUTPUT are kept.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
backbone=$1
header=$(echo "$backbone" | sed 's/backbone\.pth$/header.pth/')
data=${2:-../shared/data}
tables=${3:-runs/default}
output=${4:-runs/anchors}
mkdir -p "$output"

# The rows of LFW's originals, and pairs of them.
awk -F '\t' 'NR == 1 || ($1 !~ /^faces\/[0-9]/ && $1 !~ /~/)' "$tables/known.tsv" > "$tables/lfw.tsv"
tail -n +2 "$tables/lfw.tsv" | cut -f 1 | sed "s|^|$tables/|" > "$output/images.txt"
[ -f "$output/pairs.tsv" ] || {
    while read -r image; do
        mkdir -p "$output/originals/$(basename "$(dirname "$image")")"
        cp "$image" "$output/originals/$(basename "$(dirname "$image")")/"
    done < "$output/images.txt"
    "$python" evaluate.py pairs "$output/originals" --output "$output/pairs.tsv"
}

embed() {  # name, FR model
    [ -f "$output/$1.npz" ] || "$python" evaluate.py embed "@$output/images.txt" --fr "$2" --output "$output/$1.npz" --resume
}
anchors() {  # name of the table, name of the embeddings, flags
    table=$tables/anchors-$1.tsv; model=$2; shift 2
    "$python" -m recipes.default_model.anchors "$tables/lfw.tsv" "$output/$model.npz" --output "$table" "$@"
}
embed cr-fiqa "$backbone"
embed foamliu "$data/fr/mobilefacenet_foamliu.onnx"
embed faceplugin "$data/fr/faceplugin_fr_feature.onnx"
embed dlib dlib
for anchor in ratio shifted; do
    anchors "header-$anchor" cr-fiqa --anchor $anchor --header "$header"
    for model in cr-fiqa foamliu faceplugin dlib; do
        anchors "$model-$anchor" $model --anchor $anchor
    done
done
regress() {  # CR-FIQA's own estimate of its anchor, from the image alone: name, backbone
    [ -f "$output/$1.csv" ] || "$python" inference.py "@$output/images.txt" --method cr-fiqa --weights "$2" --align no \
        --output "$output/$1.csv"
}
regress regressed "$backbone"
regress fitted "$(dirname "$backbone")/fitted.pth"

# Of the anchors themselves: they know the identities, so this is how well they tell bad images, not a method.
named() {  # NAME@JUDGE=TABLE of each table
    for anchor in ratio shifted; do
        echo "header-$anchor@foamliu=$tables/anchors-header-$anchor.tsv"
        echo "cr-fiqa-$anchor@foamliu=$tables/anchors-cr-fiqa-$anchor.tsv"
        for model in foamliu faceplugin dlib; do
            echo "$model-$anchor@$model=$tables/anchors-$model-$anchor.tsv"
        done
    done
}
# shellcheck disable=SC2046 - one word a table
"$python" evaluate.py edc --pairs "$output/pairs.tsv" --output "$output/edc" --fmr 1e-2 1e-3 --limits 0.3 \
    --embeddings "foamliu=$output/foamliu.npz" "faceplugin=$output/faceplugin.npz" "dlib=$output/dlib.npz" \
    --scores "regressed@foamliu=$output/regressed.csv" "fitted@foamliu=$output/fitted.csv" $(named)
"$python" -m recipes.default_model.reports.edc_tables "anchors_edc=$output/edc" --results results

# Of the CLIB-FIQA that each of them trains, on people that no anchor saw.
"$python" -m recipes.default_model.reports.ablation --data "$data" --tables "$tables" --output "$output/trained" --results results --anchors \
    header-ratio=anchors-header-ratio.tsv header-shifted=anchors-header-shifted.tsv \
    cr-fiqa-shifted=anchors-cr-fiqa-shifted.tsv foamliu-ratio=anchors-foamliu-ratio.tsv \
    foamliu-shifted=anchors-foamliu-shifted.tsv faceplugin-shifted=anchors-faceplugin-shifted.tsv \
    dlib-shifted=anchors-dlib-shifted.tsv

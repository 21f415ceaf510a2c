# Read by evaluation_table.sh and quality_labels.sh, whose variables $python and $folder it uses.
# shellcheck shell=sh

judge() {  # pairs, folder of the embeddings, further flags; into $folder
    pairs=$1; embeddings=$2; shift 2
    "$python" evaluate.py edc --pairs "$pairs" --embeddings "foamliu=$embeddings/foamliu.npz" \
        "faceplugin=$embeddings/faceplugin.npz" "dlib=$embeddings/dlib.npz" --fmr 1e-2 1e-3 --output "$folder" "$@"
}
tables() {  # folder; its score tables as NAME=FILE
    for file in "$1"/scores/*.csv; do echo "$(basename "$file" .csv)=$file"; done
}

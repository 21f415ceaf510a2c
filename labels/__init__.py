"""What is known of faces: the label table, quality anchors, recognition models, factors, and their measurement."""

"""EuroSAT: 10 classes of land use in satellite images, 18,900 for training and 8,100 for testing.

    python -m lattec_jax.train --config=configs/eurosat.py --config.weights=weights/ViT-B-32

The README, "A real run", has the commands before this one: weights and descriptions. The images are
read from a folder of class sub-folders, `$LATTECLIP_DATA_DIR/eurosat/{train,test}/<class>/`.

Expect: 1,800 steps of 512 images. Accuracy not yet measured here (the paper: 80.27 against 42.95
zero-shot); time not yet measured.
"""

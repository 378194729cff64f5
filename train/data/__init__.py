"""Loading images. cifar10: the labelled set, its ids and folds; sources: the archive and npz files; synthetic: the
generated set; pictures: image files of any size; unlabelled: a competition's images.

Of our code it imports `augment` and train/__init__.py only."""

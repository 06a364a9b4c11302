"""How to read what each view shows: one text for the page, for Weights & Biases and for whoever else shows views."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["HOW_TO_READ", "HowToRead"]


@dataclass(frozen=True)
class HowToRead:
    """What a reader needs to know of a view.

    Attributes:
        what: What it shows.
        made: How it is made.
        cannot: What it cannot tell.
        paper: Where it was described first; "" where nowhere.
    """

    what: str
    made: str
    cannot: str
    paper: str = ""

    def __str__(self) -> str:
        paper = f" ({self.paper})" if self.paper else ""
        return f"{self.what} {self.made} What it cannot tell: {self.cannot}{paper}"


HOW_TO_READ: Mapping[str, HowToRead] = {
    "top_patches": HowToRead(
        "The image regions that drive each feature map most.",
        "For every channel, the images with its strongest activation over the whole data set, each cut to the "
        "receptive field of the unit that was strongest.",
        "What the channel does on images that are not there, or why: look at the projection for that. Few images a "
        "class bound the purity.",
        "Zeiler & Fergus 2013, section 4, Fig. 2",
    ),
    "deconvnet": HowToRead(
        "What in a patch the unit answers to.",
        "The unit's activation is passed back to pixels through the transposed filters, with the switches of the max "
        "pooling that were recorded on the way up.",
        "It is no gradient and no heat map of importance: it shows structure that this unit's path would pass on. Each "
        "picture has a scale of its own.",
        "Zeiler & Fergus 2013, section 2.1 and Fig. 2",
    ),
    "filters": HowToRead(
        "The weights themselves.",
        "Each kernel on one scale a layer, mid-gray is zero; kernels of three channels in color.",
        "In deeper layers, what a weight means depends on the channel that it reads.",
        "Zeiler & Fergus 2013, section 4.1 and Fig. 6",
    ),
    "activation_maps": HowToRead(
        "Where on an image each channel is active.",
        "The feature maps of a few fixed images, the strongest first, on one scale a row.",
        "Nothing about other images.",
        "Zeiler & Fergus 2013, section 3",
    ),
    "layer_probe": HowToRead(
        "How well a simple classifier does on the features of each layer.",
        "A linear SVM or softmax is trained on the features, and tested on images it has not seen.",
        "That the network uses what the probe finds.",
        "Zeiler & Fergus 2013, section 5.3, Table 7",
    ),
    "online_probe": HowToRead(
        "How well a linear classifier does on each layer while the network learns.",
        "It is trained beside the network, without touching it.",
        "Its accuracy lags behind that of a probe that is trained to the end.",
        "Alain & Bengio 2016",
    ),
    "invariance": HowToRead(
        "How features and scores change as images are shifted, scaled and rotated.",
        "The distance of the features from those of the untouched image, and the probability of the class.",
        "Invariance to other changes.",
        "Zeiler & Fergus 2013, section 4.1 and Fig. 5",
    ),
    "occlusion": HowToRead(
        "Which parts of an image the score depends on.",
        "A gray square is moved over the image; the maps show the score at each of its places.",
        "Parts that stand in for each other: covering one alone changes little.",
        "Zeiler & Fergus 2013, section 4.2 and Fig. 7",
    ),
    "attribution": HowToRead(
        "Which pixels speak for the class.",
        "Gradients of the score at the pixels, or a method that builds on them.",
        "They depend on the method, and noise looks like structure.",
        "Selvaraju et al. 2017; Sundararajan et al. 2017",
    ),
    "maximization": HowToRead(
        "What the network itself would draw for a unit or a class.",
        "An image is climbed by gradient ascent, under small transforms that keep it stable.",
        "It is one of many optima, and far from real images.",
        "Erhan et al. 2009; Olah et al. 2017",
    ),
    "correlation": HowToRead(
        "Which channels of a layer say the same.",
        "Pearson's correlation of the channels' means over the images, clustered.",
        "Channels that agree on the mean may differ in place.",
    ),
    "layer_table": HowToRead(
        "What the network is made of.",
        "Measured from one pass: sizes, parameters, multiply-adds and receptive fields that no border cuts off.",
        "How much of a receptive field matters: mostly its middle.",
    ),
    "comparison": HowToRead(
        "What has become of each unit.",
        "Correlation and CKA of the activations of two networks on the same images, with one-to-one matching.",
        "Whether they compute it alike.",
        "Kornblith et al. 2019",
    ),
    "sample_efficiency": HowToRead(
        "How many images of each class a network needs, with pretrained weights and from scratch.",
        "Each variant is trained on a few images of each class, once for each seed; bands are one standard deviation.",
        "What a longer training or another schedule would reach: all have one budget.",
        "Zeiler & Fergus 2013, section 5.2 and Fig. 9",
    ),
    "ablation": HowToRead(
        "What each part of the network is worth.",
        "Layers are removed or made wider or narrower, and each such network is trained anew, once for each seed.",
        "What a removed layer did: the others learn to stand in for it.",
        "Zeiler & Fergus 2013, section 5.1, Table 3",
    ),
}
"""By view."""

"""Analyses of a model other than its accuracy.

cost          parameters, multiply-accumulates, throughput
timing        interleaved timing of several functions
memory        memory of a forward pass
tradeoff      published accuracy against counted cost
networks      models with the weights that the other modules analyse
features      feature maps inside a model, used by the next two
fourier       frequency content of feature maps
similarity    similarity of the feature maps of two models
filters       filters that models have learned
graph         frequencies that random convolutions and random attention pass
bias          shape or texture bias
translation   what stays the same when an image is shifted
attribution   where SPANets look
"""

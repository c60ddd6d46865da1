"""What is asked of a model apart from its accuracy.

cost          parameters, multiply-accumulates, throughput
timing        seconds of several functions side by side
memory        what a forward pass needs
tradeoff      published accuracy against counted cost
networks      models with the weights that the rest looks at
features      the maps inside a model, which the next two look at
fourier       which frequencies they hold
similarity    how alike those of two models are
filters       what filters have learnt
graph         which frequencies random convolutions and random attention pass
bias          shape or texture
translation   what moving an image leaves as it is
attribution   where SPANets look
"""

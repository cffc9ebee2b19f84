// What is before and between dense blocks: see stem.py.

#include "convolution.h"
#include "pooling.h"

FUNCTION(Convolve, densenet::convolve);
FUNCTION(ConvolveBackward, densenet::convolve_backward);
FUNCTION(MaxPool, densenet::max_pool);
FUNCTION(MaxPoolBackward, densenet::max_pool_backward);
FUNCTION(AveragePool, densenet::average_pool);
FUNCTION(AveragePoolBackward, densenet::average_pool_backward);

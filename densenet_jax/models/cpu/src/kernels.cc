// The functions that XLA calls on a CPU: see stages.py and stem.py.

#include "convolution.h"
#include "evaluate.h"
#include "pooling.h"
#include "stages.h"

#define FUNCTION(name, function)                                   \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, densenet::run<function>,     \
                                xla::ffi::Ffi::Bind()              \
                                    .Ctx<xla::ffi::ThreadPool>()   \
                                    .RemainingArgs()               \
                                    .RemainingRets()               \
                                    .Attrs())

FUNCTION(Forward1x1, densenet::stage_forward_1x1);
FUNCTION(Forward3x3, densenet::stage_forward_3x3);
FUNCTION(Backward1x1, densenet::stage_backward<false>);
FUNCTION(Backward3x3, densenet::stage_backward<true>);
FUNCTION(BlockForward, densenet::block_forward);
FUNCTION(BlockBackward, densenet::block_backward);
FUNCTION(BlockEvaluate, densenet::block_evaluate);
FUNCTION(Convolve, densenet::convolve);
FUNCTION(ConvolveBackward, densenet::convolve_backward);
FUNCTION(MaxPool, densenet::max_pool);
FUNCTION(MaxPoolBackward, densenet::max_pool_backward);
FUNCTION(AveragePool, densenet::average_pool);
FUNCTION(AveragePoolBackward, densenet::average_pool_backward);

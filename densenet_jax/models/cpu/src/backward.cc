// The transposes of dense blocks: see stages.py.  The .cc files are compiled side by side.

#include "block.h"
#include "stages.h"

FUNCTION(Backward1x1, densenet::stage_backward<false>);
FUNCTION(Backward3x3, densenet::stage_backward<true>);
FUNCTION(BlockBackward, densenet::block_backward);

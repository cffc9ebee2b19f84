// Dense blocks in training: see stages.py.  The .cc files are compiled side by side.

#include "block.h"
#include "stages.h"

FUNCTION(Forward1x1, densenet::stage_forward_1x1);
FUNCTION(Forward3x3, densenet::stage_forward_3x3);
FUNCTION(BlockForward, densenet::block_forward);

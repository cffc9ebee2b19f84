// Dense blocks with fixed statistics: see stages.py.

#include "evaluate.h"

FUNCTION(BlockEvaluate, densenet::block_evaluate);

// Dense blocks with fixed statistics: see stages.py.

#include "evaluate.h"

FUNCTION(Pack, densenet::pack);
FUNCTION(BlockEvaluate, densenet::block_evaluate);

extern "C" int64_t PanelWidth() { return densenet::kWide; }
extern "C" int64_t MultipliesBfloat16() { return densenet::kMultipliesBfloat16; }

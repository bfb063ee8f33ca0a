// A usage() that goes wrong, in the way that the macro DEFECT says. At load, where
// the look at the host asks for the statistics of 1.5 s, all is well, unless
// AT_LOAD is defined.

#include <stdexcept>

#define timestampedStatistics soundStatistics
#include "convert_shim.cpp"
#undef timestampedStatistics

namespace extvol {

string timestampedStatistics(double seconds)
{
#ifndef AT_LOAD
  if (seconds == 1.5) {
    return soundStatistics(seconds);
  }
#endif
  DEFECT;
  return soundStatistics(seconds);
}

} // namespace extvol {

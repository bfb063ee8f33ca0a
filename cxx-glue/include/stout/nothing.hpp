// stout's unit type.

#ifndef __STOUT_NOTHING_HPP__
#define __STOUT_NOTHING_HPP__

struct Nothing {};

#endif // __STOUT_NOTHING_HPP__

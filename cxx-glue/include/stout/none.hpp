// stout's "no value", which converts to any Option.

#ifndef __STOUT_NONE_HPP__
#define __STOUT_NONE_HPP__

struct None {};

#endif // __STOUT_NONE_HPP__

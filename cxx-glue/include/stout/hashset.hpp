// stout's hashset is std::unordered_set with a few more functions, none of
// which the glue calls.

#ifndef __STOUT_HASHSET_HPP__
#define __STOUT_HASHSET_HPP__

#include <functional>
#include <unordered_set>

template <
    typename Elem,
    typename Hash = std::hash<Elem>,
    typename Equal = std::equal_to<Elem>>
class hashset : public std::unordered_set<Elem, Hash, Equal> {};

#endif // __STOUT_HASHSET_HPP__

// stout's hashmap is std::unordered_map with a few more functions, none of
// which the glue calls.

#ifndef __STOUT_HASHMAP_HPP__
#define __STOUT_HASHMAP_HPP__

#include <functional>
#include <unordered_map>

template <
    typename Key,
    typename Value,
    typename Hash = std::hash<Key>,
    typename Equal = std::equal_to<Key>>
class hashmap : public std::unordered_map<Key, Value, Hash, Equal> {};

#endif // __STOUT_HASHMAP_HPP__

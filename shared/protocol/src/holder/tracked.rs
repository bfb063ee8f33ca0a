//! A map that knows which of its entries may have changed, so that what is stored of it costs what has changed, whatever its size.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::ops::Deref;

/// See the module's head. Which entries were touched is no part of its value.
#[derive(Clone, Debug)]
pub(crate) struct Tracked<K, V> {
    entries: BTreeMap<K, V>,
    touched: BTreeSet<K>,
}

impl<K: Ord + Clone, V> Tracked<K, V> {
    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let entry = self.entries.get_mut(key)?;
        self.touched.insert(key.clone());
        Some(entry)
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        self.touched.insert(key.clone());
        self.entries.insert(key, value);
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let value = self.entries.remove(key)?;
        self.touched.insert(key.clone());
        Some(value)
    }

    /// All of them are touched by it.
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.iter_mut().map(|(_, value)| value)
    }

    /// All of them are touched by it.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.touched.extend(self.entries.keys().cloned());
        self.entries.iter_mut()
    }

    pub(super) fn retain(&mut self, mut keep: impl FnMut(&K) -> bool) {
        let touched = &mut self.touched;
        self.entries.retain(|key, _| {
            let kept = keep(key);
            if !kept {
                touched.insert(key.clone());
            }
            kept
        });
    }

    pub(super) fn clear(&mut self) {
        self.retain(|_| false);
    }

    /// What was touched since this was last called.
    pub(super) fn take_touched(&mut self) -> BTreeSet<K> {
        std::mem::take(&mut self.touched)
    }
}

impl<K, V> Deref for Tracked<K, V> {
    type Target = BTreeMap<K, V>;

    fn deref(&self) -> &BTreeMap<K, V> {
        &self.entries
    }
}

impl<K, V> From<BTreeMap<K, V>> for Tracked<K, V> {
    fn from(entries: BTreeMap<K, V>) -> Self {
        Self { entries, touched: BTreeSet::new() }
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for Tracked<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

impl<K: Eq, V: Eq> Eq for Tracked<K, V> {}

impl<K: Hash, V: Hash> Hash for Tracked<K, V> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.entries.hash(state);
    }
}

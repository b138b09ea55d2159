//! A map in ascending key order. It needs no allocation of its own for one entry, and is a list up to 16.

use std::collections::BTreeMap;
use std::mem;

use smallvec::SmallVec;

use crate::record::key::Name;

/// The maximum number of entries stored without an allocation. Most requests that change values change one
/// key.
const IN_PLACE: usize = 1;

/// The maximum number of entries stored as a list. Larger maps are trees, because inserting into a long list
/// is slow.
const LISTED: usize = 16;

/// Values by key, in ascending order of the keys.
#[derive(Clone)]
pub(crate) enum SmallMap<V> {
    List(SmallVec<[(Name, V); IN_PLACE]>),
    Tree(BTreeMap<Name, V>),
}

impl<V> Default for SmallMap<V> {
    fn default() -> Self {
        Self::List(SmallVec::new())
    }
}

impl<V> SmallMap<V> {
    pub(crate) fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    pub(crate) fn get(&self, key: &str) -> Option<&V> {
        match self {
            Self::List(list) => {
                let index = list.binary_search_by(|(name, _)| (**name).cmp(key)).ok()?;
                list.get(index).map(|(_, value)| value)
            }
            Self::Tree(tree) => tree.get(key),
        }
    }

    /// Returns the value of a key. Inserts the default value if the key has none.
    pub(crate) fn get_or_default(&mut self, key: Name) -> &mut V
    where
        V: Default,
    {
        if let Self::List(list) = self
            && list.len() == LISTED
        {
            *self = Self::Tree(mem::take(list).into_iter().collect());
        }
        match self {
            Self::List(list) => {
                let found = list.binary_search_by(|(name, _)| name.cmp(&key));
                let index = found.unwrap_or_else(|index| {
                    list.insert(index, (key, V::default()));
                    index
                });
                &mut list[index].1
            }
            Self::Tree(tree) => tree.entry(key).or_default(),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Name, &V)> {
        let (list, tree) = match self {
            Self::List(list) => (Some(list), None),
            Self::Tree(tree) => (None, Some(tree)),
        };
        let list = list.into_iter().flatten().map(|(key, value)| (key, value));
        list.chain(tree.into_iter().flatten())
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    pub(crate) fn retain(&mut self, mut is_kept: impl FnMut(&mut V) -> bool) {
        match self {
            Self::List(list) => list.retain(|(_, value)| is_kept(value)),
            Self::Tree(tree) => tree.retain(|_, value| is_kept(value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Covers small and large maps, and the conversion from a small map to a large one.
        #[test]
        fn small_map_behaves_like_map(keys in prop::collection::vec(0..60_u32, 0..90)) {
            let mut map = SmallMap::default();
            let mut model: BTreeMap<String, usize> = BTreeMap::new();
            for (value, key) in keys.into_iter().enumerate() {
                let key = key.to_string();
                let earlier = mem::replace(map.get_or_default((&*key).into()), value);
                prop_assert_eq!(earlier, model.insert(key, value).unwrap_or_default());
                if value % 30 == 29 {
                    map.retain(|value| *value % 2 == 0);
                    model.retain(|_, value| *value % 2 == 0);
                }
                prop_assert!(map.iter().map(|(key, value)| (&**key, value)).eq(model.iter().map(|(key, value)| (&**key, value))));
                prop_assert!((0..60).all(|key: u32| map.get(&key.to_string()) == model.get(&key.to_string())));
                prop_assert_eq!(map.is_empty(), model.is_empty());
            }
        }
    }
}

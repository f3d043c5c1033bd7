//! Namespaces by the paths that lead to them: one lives as long as any does.

use std::{
    io,
    path::{Path, PathBuf},
};

use async_trait::async_trait;

use super::{FakeLinks, State, stripped};
use crate::{
    link::Namespace,
    netns::{Hold, Namespaces, NetnsError, NetnsId, Seen},
};

/// Where the model holds namespaces.
const HOLDS: &str = "/run/netferry/netns";
/// Few inodes, so that they are given again.
const INODES: u64 = 4;

impl State {
    /// What a namespace is called in the model: not by its path, which may be given to another one.
    pub(super) fn key(&self, namespace: &Namespace) -> String {
        let text = namespace.to_string();
        self.paths.get(&text).cloned().unwrap_or(text)
    }

    /// The links of a namespace, which is made if it is not there.
    pub(super) fn make(
        &mut self,
        namespace: &Namespace,
    ) -> &mut std::collections::BTreeMap<u32, super::FakeLink> {
        let text = namespace.to_string();
        let is_new = *namespace != Namespace::Host && !self.paths.contains_key(&text);
        if is_new {
            self.made += 1;
            self.paths.insert(text, format!("net {}", self.made));
        }
        let key = self.key(namespace);
        self.namespaces.entry(key).or_default()
    }

    /// A path leads nowhere any more. With the last one the namespace dies: made links go with it, hardware returns to the
    /// host without its addresses, down, under its name or, if that is taken, as `dev` and its index.
    fn unlink(&mut self, path: &str) {
        let Some(key) = self.paths.remove(path) else { return };
        if self.paths.values().any(|other| *other == key) {
            return;
        }
        let pairs = self.pairs.clone().into_iter().flatten().filter(|(at, _)| *at == key);
        for (_, ifindex) in pairs.collect::<Vec<_>>() {
            self.take(&key, ifindex);
        }
        let links = self.namespaces.remove(&key).unwrap_or_default();
        for (_, mut link) in links.into_iter().filter(|(_, link)| link.home.link.kind.is_none()) {
            if self.free(&Namespace::Host, &link.home.link.name).is_err() {
                link.home.link.name = format!("dev{}", link.home.link.ifindex);
            }
            stripped(&mut link);
            let index = link.home.link.ifindex;
            self.make(&Namespace::Host).insert(index, link);
        }
    }

    fn id(&self, path: &Path) -> Result<NetnsId, NetnsError> {
        let key = self.paths.get(&path.display().to_string());
        let number = key.and_then(|key| key.strip_prefix("net ")?.parse::<u64>().ok());
        let gone = || NetnsError::Gone { path: path.to_owned(), source: io::ErrorKind::NotFound.into() };
        let cookie = number.ok_or_else(gone)?;
        Ok(NetnsId { cookie, boot_id: format!("boot {}", self.boots), dev: 4, ino: cookie % INODES })
    }
}

impl FakeLinks {
    /// The runtime removes a namespace, and no process is in it.
    pub fn vanish(&self, namespace: &Namespace) {
        self.state().unlink(&namespace.to_string());
    }

    /// A namespace dies although it is held: somebody has taken the holds away.
    pub fn destroy(&self, namespace: &Namespace) {
        let mut state = self.state();
        let key = state.key(namespace);
        let paths: Vec<String> =
            state.paths.iter().filter(|(_, to)| **to == key).map(|(path, _)| path.clone()).collect();
        for path in paths {
            state.unlink(&path);
        }
    }

    /// The machine starts anew: every namespace but the host's is gone, and the host has these links.
    pub fn reboot(&self, host: Vec<super::FakeLink>) {
        let mut state = self.state();
        state.boots += 1;
        state.paths.clear();
        state.pairs.clear();
        state.namespaces.clear();
        for link in host {
            state.make(&Namespace::Host).insert(link.home.link.ifindex, link);
        }
    }

    /// Indices of all links, which are unique in this model.
    #[must_use]
    pub fn indices(&self) -> std::collections::BTreeSet<u32> {
        self.state().namespaces.values().flat_map(std::collections::BTreeMap::keys).copied().collect()
    }

    /// Namespaces that are there, without the host's.
    #[must_use]
    pub fn namespaces(&self) -> usize {
        self.state().namespaces.len() - 1
    }
}

#[async_trait]
impl Namespaces for FakeLinks {
    fn boot_id(&self) -> String {
        format!("boot {}", self.state().boots)
    }

    async fn look(&self, path: &Path) -> Result<Seen, NetnsError> {
        let id = self.state().id(path)?;
        Ok(Seen { since: i128::from(id.cookie), id })
    }

    async fn hold(&self, path: &Path) -> Result<Hold, NetnsError> {
        let mut state = self.state();
        let id = state.id(path)?;
        let hold = PathBuf::from(format!("{HOLDS}/net-{}", id.cookie));
        state.paths.insert(hold.display().to_string(), format!("net {}", id.cookie));
        Ok(Hold { id, path: hold })
    }

    async fn held(&self) -> Result<Vec<PathBuf>, NetnsError> {
        Ok(self.state().paths.keys().filter(|path| path.starts_with(HOLDS)).map(PathBuf::from).collect())
    }

    async fn is_used(&self, hold: &Path) -> Result<bool, NetnsError> {
        let state = self.state();
        let key = state.paths.get(&hold.display().to_string());
        Ok(state.paths.iter().any(|(path, to)| Some(to) == key && !path.starts_with(HOLDS)))
    }

    async fn release(&self, hold: &Path) -> Result<(), NetnsError> {
        self.state().unlink(&hold.display().to_string());
        Ok(())
    }
}

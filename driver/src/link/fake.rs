//! Links without a kernel, for tests of what calls them: several namespaces with the state a kernel would
//! keep, and failures where the test asks for them.

mod made;
mod namespaces;
mod pairs;
mod setup;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;

use super::{
    Address, Ends, Home, Link, LinkError, LinkRef, Links, MacAddr, Namespace, Pair, PairKind, Route,
    Settings, Setup, Upper,
};

/// One link with all it has where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FakeLink {
    /// What it is and has.
    pub home: Home,
    /// MTU the kernel takes, in bytes.
    pub mtu_range: (u32, u32),
}

impl FakeLink {
    /// A hardware link with this name and index: up, MTU 1500, a MAC made of the index.
    #[must_use]
    pub fn hardware(name: &str, ifindex: u32) -> Self {
        let [.., low] = ifindex.to_be_bytes();
        let mac = MacAddr([2, 0, 0, 0, 0, low]);
        let link = Link {
            ifindex,
            name: name.to_owned(),
            mac: Some(mac),
            permanent_mac: Some(mac),
            mtu: 1500,
            up: true,
            kind: None,
            blackhole: false,
            alt_names: BTreeSet::new(),
        };
        let home = Home {
            link,
            addresses: vec![],
            routes: vec![],
            neighbours: vec![],
            sysctls: BTreeMap::new(),
            settings: Settings::default(),
            recipe: None,
        };
        Self { home, mtu_range: (68, 9000) }
    }
}

#[derive(Default)]
struct State {
    /// Links by index, by namespace.
    namespaces: BTreeMap<String, BTreeMap<u32, FakeLink>>,
    /// To which namespace each path leads.
    paths: BTreeMap<String, String>,
    /// Namespaces made so far, and boots.
    made: u64,
    boots: u64,
    /// Changing calls so far, and those (counted from 0) that are to fail.
    changes: u32,
    failing: BTreeSet<u32>,
    calls: Vec<String>,
    /// The ends of each pair: namespace and index.
    pairs: Vec<[(String, u32); 2]>,
}

/// See the module.
pub struct FakeLinks {
    state: Mutex<State>,
}

impl Default for FakeLinks {
    fn default() -> Self {
        let mut state = State::default();
        state.namespaces.insert(Namespace::Host.to_string(), BTreeMap::new());
        Self { state: Mutex::new(state) }
    }
}

fn not_found(link: &impl ToString, namespace: &Namespace) -> LinkError {
    LinkError::NotFound { link: link.to_string(), namespace: namespace.clone() }
}

impl State {
    fn links(&mut self, namespace: &Namespace) -> Result<&mut BTreeMap<u32, FakeLink>, LinkError> {
        let gone = io::Error::from(io::ErrorKind::NotFound);
        let key = self.key(namespace);
        self.namespaces
            .get_mut(&key)
            .ok_or(LinkError::NamespaceGone { namespace: namespace.clone(), source: gone })
    }

    fn link(&mut self, namespace: &Namespace, ifindex: u32) -> Result<&mut FakeLink, LinkError> {
        self.links(namespace)?.get_mut(&ifindex).ok_or_else(|| not_found(&ifindex, namespace))
    }

    /// Take a link out, and with an end of a pair the other one.
    fn take(&mut self, namespace: &str, ifindex: u32) {
        let end = (namespace.to_owned(), ifindex);
        let (gone, kept) = std::mem::take(&mut self.pairs).into_iter().partition(|pair| pair.contains(&end));
        self.pairs = kept;
        for (namespace, ifindex) in gone.into_iter().flatten().chain([end]) {
            if let Some(links) = self.namespaces.get_mut(&namespace) {
                links.remove(&ifindex);
            }
        }
    }

    /// An index that no link has anywhere, so that a link keeps its own through a move.
    fn next_index(&self) -> u32 {
        let indices = self.namespaces.values().flat_map(BTreeMap::keys);
        indices.max().map_or(2, |last| last + 1)
    }

    fn free(&mut self, namespace: &Namespace, name: &str) -> Result<(), LinkError> {
        let has = |link: &FakeLink| link.home.link.name == name || link.home.link.alt_names.contains(name);
        if self.links(namespace)?.values().any(has) {
            return Err(LinkError::NameTaken { name: name.to_owned(), namespace: namespace.clone() });
        }
        Ok(())
    }
}

impl FakeLinks {
    /// A host without links.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Make a namespace.
    pub fn make(&self, namespace: &Namespace) {
        self.state().make(namespace);
    }

    /// Put a link into a namespace.
    pub fn put(&self, namespace: &Namespace, link: FakeLink) {
        self.state().make(namespace).insert(link.home.link.ifindex, link);
    }

    /// Delete a link.
    pub fn delete(&self, namespace: &Namespace, name: &str) {
        let mut state = self.state();
        let key = state.key(namespace);
        let links = state.namespaces.get(&key);
        let found = links.and_then(|links| links.values().find(|link| link.home.link.name == name));
        if let Some(ifindex) = found.map(|link| link.home.link.ifindex) {
            state.take(&key, ifindex);
        }
    }

    /// Change a link behind the driver's back, as its pod may.
    pub fn spoil(&self, namespace: &Namespace, name: &str, change: impl FnOnce(&mut FakeLink)) {
        let mut state = self.state();
        let key = state.key(namespace);
        let links = state.namespaces.get_mut(&key);
        if let Some(link) = links.and_then(|links| links.values_mut().find(|it| it.home.link.name == name)) {
            change(link);
        }
    }

    /// Let the `nth` changing call from the start fail, without effect.
    pub fn fail_change(&self, nth: u32) {
        self.state().failing.insert(nth);
    }

    /// Whether a changing call is to fail, or has failed.
    #[must_use]
    pub fn fails(&self) -> bool {
        !self.state().failing.is_empty()
    }

    /// Changing calls so far.
    #[must_use]
    pub fn changes(&self) -> u32 {
        self.state().changes
    }

    /// What a namespace has.
    #[must_use]
    pub fn links_in(&self, namespace: &Namespace) -> Vec<FakeLink> {
        let state = self.state();
        state.namespaces.get(&state.key(namespace)).into_iter().flat_map(|it| it.values().cloned()).collect()
    }

    /// Every changing call so far, in words.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    fn change(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        action: String,
    ) -> Result<MutexGuard<'_, State>, LinkError> {
        let mut state = self.state();
        let nth = state.changes;
        state.changes += 1;
        state.calls.push(action.clone());
        if state.failing.contains(&nth) {
            return Err(LinkError::Kernel {
                action,
                link: ifindex.to_string(),
                namespace: namespace.clone(),
                source: io::Error::from_raw_os_error(libc::EIO),
            });
        }
        Ok(state)
    }
}

/// What a move takes from a link.
fn stripped(link: &mut FakeLink) {
    link.home.addresses.clear();
    link.home.routes.clear();
    link.home.neighbours.clear();
    link.home.sysctls.clear();
    link.home.settings.token = None;
    link.home.link.up = false;
}

#[async_trait]
impl Links for FakeLinks {
    async fn list(&self, namespace: &Namespace) -> Result<Vec<Link>, LinkError> {
        Ok(self.state().links(namespace)?.values().map(|link| link.home.link.clone()).collect())
    }

    async fn get(&self, namespace: &Namespace, wanted: &LinkRef) -> Result<Link, LinkError> {
        let links = self.list(namespace).await?;
        let found = links.into_iter().find(|link| match wanted {
            LinkRef::Index(index) => link.ifindex == *index,
            LinkRef::Name(name) => link.name == *name,
        });
        found.ok_or_else(|| match wanted {
            LinkRef::Index(index) => not_found(index, namespace),
            LinkRef::Name(name) => not_found(name, namespace),
        })
    }

    async fn home(&self, namespace: &Namespace, ifindex: u32) -> Result<Home, LinkError> {
        let mut home = self.state().link(namespace, ifindex)?.home.clone();
        // Elsewhere its parent is in another namespace.
        home.recipe = home.recipe.filter(|_| *namespace == Namespace::Host);
        Ok(home)
    }

    async fn look(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        sysctls: &[&'static str],
    ) -> Result<Home, LinkError> {
        let mut home = self.home(namespace, ifindex).await?;
        home.sysctls.retain(|name, _| sysctls.contains(&name.as_str()));
        Ok(home)
    }

    async fn set_up(&self, namespace: &Namespace, ifindex: u32, up: bool) -> Result<(), LinkError> {
        let mut state = self.change(namespace, ifindex, format!("set {}", if up { "up" } else { "down" }))?;
        let link = state.link(namespace, ifindex)?;
        link.home.link.up = up;
        if !up {
            link.home.routes.clear();
            link.home.neighbours.clear();
            link.home.addresses.retain(|address| address.address.is_ipv4());
        }
        Ok(())
    }

    async fn rename(&self, namespace: &Namespace, ifindex: u32, name: &str) -> Result<(), LinkError> {
        let mut state = self.change(namespace, ifindex, format!("rename to {name}"))?;
        state.free(namespace, name)?;
        name.clone_into(&mut state.link(namespace, ifindex)?.home.link.name);
        Ok(())
    }

    async fn move_to(
        &self,
        from: &Namespace,
        ifindex: u32,
        to: &Namespace,
        name: &str,
        index: Option<u32>,
    ) -> Result<u32, LinkError> {
        let mut state = self.change(from, ifindex, format!("move to {to} as {name}"))?;
        state.link(from, ifindex)?;
        state.free(to, name)?;
        let taken: Vec<u32> = state.links(to)?.keys().copied().collect();
        let next = taken.last().map_or(2, |last| last + 1);
        let given = [index.unwrap_or(ifindex), ifindex, next].into_iter().find(|it| !taken.contains(it));
        let given = given.unwrap_or(next);
        let mut link = state.links(from)?.remove(&ifindex).ok_or_else(|| not_found(&ifindex, from))?;
        stripped(&mut link);
        name.clone_into(&mut link.home.link.name);
        link.home.link.ifindex = given;
        state.links(to)?.insert(given, link);
        Ok(given)
    }

    async fn set_mtu(&self, namespace: &Namespace, ifindex: u32, mtu: u32) -> Result<(), LinkError> {
        let mut state = self.change(namespace, ifindex, format!("set the MTU to {mtu}"))?;
        let link = state.link(namespace, ifindex)?;
        let (lowest, highest) = link.mtu_range;
        if !(lowest..=highest).contains(&mtu) {
            return Err(LinkError::Kernel {
                action: format!("set the MTU to {mtu} (the link takes {lowest} to {highest})"),
                link: ifindex.to_string(),
                namespace: namespace.clone(),
                source: io::Error::from_raw_os_error(libc::EINVAL),
            });
        }
        link.home.link.mtu = mtu;
        Ok(())
    }

    async fn configure(&self, namespace: &Namespace, ifindex: u32, setup: &Setup) -> Result<(), LinkError> {
        if let Some(mac) = setup.mac {
            self.set_mac(namespace, ifindex, mac)?;
        }
        if let Some(mtu) = setup.mtu {
            self.set_mtu(namespace, ifindex, mtu).await?;
        }
        self.set_sysctls(namespace, ifindex, &setup.sysctls).await?;
        for address in &setup.addresses {
            self.add_address(namespace, ifindex, address).await?;
        }
        Ok(())
    }

    async fn add_address(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        address: &Address,
    ) -> Result<(), LinkError> {
        let mut state = self.change(namespace, ifindex, format!("add the address {}", address.address))?;
        let addresses = &mut state.link(namespace, ifindex)?.home.addresses;
        addresses.retain(|had| had.address != address.address);
        addresses.push(address.clone());
        Ok(())
    }

    async fn remove_address(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        address: IpAddr,
    ) -> Result<(), LinkError> {
        let mut state = self.change(namespace, ifindex, format!("remove the address {address}"))?;
        state.link(namespace, ifindex)?.home.addresses.retain(|had| had.address.ip() != address);
        Ok(())
    }

    async fn add_routes(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        routes: &[Route],
    ) -> Result<(), LinkError> {
        routes.iter().try_for_each(|route| self.add_route(namespace, ifindex, route))
    }

    async fn replace_route(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        route: &Route,
    ) -> Result<(), LinkError> {
        let mut state =
            self.change(namespace, ifindex, format!("replace the route to {}", route.destination))?;
        let routes = &mut state.link(namespace, ifindex)?.home.routes;
        routes.retain(|had| (had.destination, had.table) != (route.destination, route.table));
        routes.push(route.clone());
        Ok(())
    }

    async fn set_sysctls(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        sysctls: &BTreeMap<String, String>,
    ) -> Result<(), LinkError> {
        let mut state = self.change(namespace, ifindex, "set sysctls".to_owned())?;
        state.link(namespace, ifindex)?.home.sysctls.extend(sysctls.clone());
        Ok(())
    }

    async fn remove_alt_name(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        name: &str,
    ) -> Result<(), LinkError> {
        let mut state = self.change(namespace, ifindex, format!("remove the alternative name {name}"))?;
        state.link(namespace, ifindex)?.home.link.alt_names.remove(name);
        Ok(())
    }

    async fn make_pair(&self, pair: &Pair) -> Result<Ends, LinkError> {
        self.add_pair(pair)
    }

    async fn open_pair(&self, host_end: u32, kind: PairKind) -> Result<(), LinkError> {
        self.open_end(host_end, kind)
    }

    async fn make_upper(&self, upper: &Upper) -> Result<u32, LinkError> {
        self.add_upper(upper)
    }

    async fn remake(&self, home: &Home) -> Result<u32, LinkError> {
        self.make_anew(home)
    }

    async fn remove(&self, namespace: &Namespace, ifindex: u32) -> Result<(), LinkError> {
        let mut state = self.change(namespace, ifindex, "delete".to_owned())?;
        state.links(namespace)?;
        let key = state.key(namespace);
        state.take(&key, ifindex);
        Ok(())
    }

    async fn restore(&self, ifindex: u32, home: &Home) -> Result<(), Vec<LinkError>> {
        let one = |error| vec![error];
        let mut state = self.change(&Namespace::Host, ifindex, "restore".to_owned()).map_err(one)?;
        let now = state.link(&Namespace::Host, ifindex).map_err(one)?;
        let mut restored = home.clone();
        restored.link.ifindex = ifindex;
        now.home = restored;
        Ok(())
    }
}

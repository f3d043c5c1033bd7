//! [`Links`] on rtnetlink and /proc/sys.

mod conversation;
mod decode;
mod encode;
mod home;
pub mod identity;
mod ipsec;
mod make;
mod namespace;
mod probe;
mod recipe;
mod remake;
mod restore;
mod sysctl;
mod underlay;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkFlags},
};

pub use self::probe::can_make;
use self::{conversation::Conversation, decode::LinkFacts, namespace::HostPath};
use super::{
    Address, Ends, Home, Link, LinkError, LinkRef, Links, MacAddr, Namespace, Pair, PairKind, Route, Upper,
};

/// Flags that an administrator sets on a link, apart from up: `IFF_NOARP`, `IFF_PROMISC`, `IFF_ALLMULTI`,
/// `IFF_MULTICAST` (linux/if.h).
const SETTABLE_LINK_FLAGS: u32 = 0x80 | 0x100 | 0x200 | 0x1000;

/// The kernel's links. Holds no socket and no namespace between calls.
#[derive(Clone, Debug, Default)]
pub struct KernelLinks {
    host: HostPath,
}

impl KernelLinks {
    /// [`Namespace::Host`] is the namespace of the process.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// [`Namespace::Host`] is the namespace at `path`: for tests and demonstrations that must leave the
    /// machine's own links alone.
    #[must_use]
    pub fn with_host(path: impl Into<PathBuf>) -> Self {
        Self { host: Some(path.into()) }
    }

    /// Run `work` on a thread of its own inside the namespace: for what the kernel tells or does only there.
    pub async fn within<T: Send + 'static>(
        &self,
        namespace: &Namespace,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, LinkError> {
        namespace::within(namespace, self.host(), work).await
    }

    /// Start on a link: a socket in its namespace.
    async fn on(&self, namespace: &Namespace, link: impl ToString) -> Result<Subject, LinkError> {
        let conversation = Conversation::open(namespace, self.host()).await?;
        Ok(Subject { conversation, namespace: namespace.clone(), link: link.to_string() })
    }

    fn host(&self) -> Option<&Path> {
        self.host.as_deref()
    }

    async fn change_link(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        attribute: LinkAttribute,
        action: impl FnOnce() -> String,
    ) -> Result<(), LinkError> {
        let on = self.on(namespace, ifindex).await?;
        let message = encode::link(ifindex, vec![attribute]);
        let done = on.conversation.change(RouteNetlinkMessage::SetLink(message), 0).await;
        done.map_err(|source| on.error(action(), source))
    }
}

/// A link that is spoken about, for requests and for their errors.
struct Subject {
    conversation: Conversation,
    namespace: Namespace,
    link: String,
}

impl Subject {
    fn error(&self, action: impl Into<String>, source: io::Error) -> LinkError {
        if source.raw_os_error() == Some(libc::ENODEV) {
            return LinkError::NotFound { link: self.link.clone(), namespace: self.namespace.clone() };
        }
        LinkError::Kernel {
            action: action.into(),
            link: self.link.clone(),
            namespace: self.namespace.clone(),
            source,
        }
    }

    async fn facts(&self, link: &LinkRef) -> Result<LinkFacts, LinkError> {
        let message = match link {
            LinkRef::Index(index) => encode::link(*index, Vec::new()),
            LinkRef::Name(name) => encode::link(0, vec![LinkAttribute::IfName(name.clone())]),
        };
        let found = self.conversation.get(RouteNetlinkMessage::GetLink(message)).await;
        let found = found.map_err(|source| self.error("read the link", source))?;
        found
            .iter()
            .find_map(|object| match object {
                RouteNetlinkMessage::NewLink(message) => Some(decode::link(message)),
                _ => None,
            })
            .ok_or_else(|| LinkError::NotFound { link: self.link.clone(), namespace: self.namespace.clone() })
    }
}

#[async_trait]
impl Links for KernelLinks {
    async fn list(&self, namespace: &Namespace) -> Result<Vec<Link>, LinkError> {
        let on = self.on(namespace, "*").await?;
        let dump = RouteNetlinkMessage::GetLink(encode::link(0, Vec::new()));
        let objects =
            on.conversation.dump(dump).await.map_err(|source| on.error("list the links", source))?;
        let links = objects.iter().filter_map(|object| match object {
            RouteNetlinkMessage::NewLink(message) => Some(decode::link(message).link),
            _ => None,
        });
        Ok(links.collect())
    }

    async fn get(&self, namespace: &Namespace, link: &LinkRef) -> Result<Link, LinkError> {
        let name = match link {
            LinkRef::Index(index) => index.to_string(),
            LinkRef::Name(name) => name.clone(),
        };
        Ok(self.on(namespace, name).await?.facts(link).await?.link)
    }

    async fn home(&self, namespace: &Namespace, ifindex: u32) -> Result<Home, LinkError> {
        home::read(&self.on(namespace, ifindex).await?, self.host(), ifindex).await
    }

    async fn look(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        sysctls: &[&'static str],
    ) -> Result<Home, LinkError> {
        home::look(&self.on(namespace, ifindex).await?, self.host(), ifindex, sysctls.to_vec()).await
    }

    async fn set_up(&self, namespace: &Namespace, ifindex: u32, up: bool) -> Result<(), LinkError> {
        let on = self.on(namespace, ifindex).await?;
        let bit = LinkFlags::Up.bits();
        let message = encode::flags(ifindex, if up { bit } else { 0 }, bit);
        let done = on.conversation.change(RouteNetlinkMessage::SetLink(message), 0).await;
        done.map_err(|source| on.error(if up { "set up" } else { "set down" }, source))
    }

    async fn rename(&self, namespace: &Namespace, ifindex: u32, name: &str) -> Result<(), LinkError> {
        let renamed = self.change_link(namespace, ifindex, LinkAttribute::IfName(name.to_owned()), || {
            format!("rename to {name:?}")
        });
        name_taken(renamed.await, name, namespace)
    }

    async fn move_to(
        &self,
        from: &Namespace,
        ifindex: u32,
        to: &Namespace,
        name: &str,
        index: Option<u32>,
    ) -> Result<u32, LinkError> {
        let there = self.on(to, name).await?;
        // While the link's present name is free in the target, the kernel moves first and renames then, all in
        // one request: a name that is taken would leave the link moved under a name nobody asked for.
        if there.facts(&LinkRef::Name(name.to_owned())).await.is_ok() {
            return Err(LinkError::NameTaken { name: name.to_owned(), namespace: to.clone() });
        }
        let on = self.on(from, ifindex).await?;
        let target = namespace::open(to, self.host())?;
        let message = |index: Option<u32>| {
            let mut attributes =
                vec![LinkAttribute::NetNsFd(target.as_raw_fd()), LinkAttribute::IfName(name.to_owned())];
            attributes
                .extend(index.and_then(|index| i32::try_from(index).ok()).map(LinkAttribute::NewIfIndex));
            RouteNetlinkMessage::SetLink(encode::link(ifindex, attributes))
        };
        let mut moved = on.conversation.change(message(index), 0).await;
        // EBUSY: the index is taken there. EINVAL and EOPNOTSUPP: this kernel takes no index.
        let refused = [libc::EBUSY, libc::EINVAL, libc::EOPNOTSUPP].map(Some);
        if index.is_some() && matches!(&moved, Err(error) if refused.contains(&error.raw_os_error())) {
            moved = on.conversation.change(message(None), 0).await;
        }
        let moved = moved.map_err(|source| on.error(format!("move to {to} as {name:?}"), source));
        name_taken(moved, name, to)?;
        Ok(there.facts(&LinkRef::Name(name.to_owned())).await?.link.ifindex)
    }

    async fn set_mac(&self, namespace: &Namespace, ifindex: u32, mac: MacAddr) -> Result<(), LinkError> {
        let attribute = LinkAttribute::Address(mac.0.to_vec());
        self.change_link(namespace, ifindex, attribute, || format!("set the MAC to {mac}")).await
    }

    async fn set_mtu(&self, namespace: &Namespace, ifindex: u32, mtu: u32) -> Result<(), LinkError> {
        let on = self.on(namespace, ifindex).await?;
        let message = encode::link(ifindex, vec![LinkAttribute::Mtu(mtu)]);
        let Err(source) = on.conversation.change(RouteNetlinkMessage::SetLink(message), 0).await else {
            return Ok(());
        };
        let action = match on.facts(&LinkRef::Index(ifindex)).await.map(|facts| facts.mtu_range) {
            Ok((lowest, 0)) => format!("set the MTU to {mtu} (the link takes {lowest} and more)"),
            Ok((lowest, highest)) => format!("set the MTU to {mtu} (the link takes {lowest} to {highest})"),
            Err(_) => format!("set the MTU to {mtu}"),
        };
        Err(on.error(action, source))
    }

    async fn add_address(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        address: &Address,
    ) -> Result<(), LinkError> {
        let on = self.on(namespace, ifindex).await?;
        on.add_address(ifindex, address).await
    }

    async fn remove_address(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        address: IpAddr,
    ) -> Result<(), LinkError> {
        let on = self.on(namespace, ifindex).await?;
        for had in home::addresses(&on, ifindex).await?.iter().filter(|had| had.address.ip() == address) {
            let message = RouteNetlinkMessage::DelAddress(encode::address(ifindex, had));
            match on.conversation.change(message, 0).await {
                Ok(()) => {}
                // Somebody else has just removed it.
                Err(source) if source.kind() == io::ErrorKind::AddrNotAvailable => {}
                Err(source) => return Err(on.error(format!("remove the address {}", had.address), source)),
            }
        }
        Ok(())
    }

    async fn add_route(&self, namespace: &Namespace, ifindex: u32, route: &Route) -> Result<(), LinkError> {
        let on = self.on(namespace, ifindex).await?;
        let message = RouteNetlinkMessage::NewRoute(encode::route(ifindex, route));
        match on.conversation.change(message, NLM_F_CREATE | NLM_F_EXCL).await {
            Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {
                // Ours from an earlier run, or one through another link?
                let (routes, _) = home::routes(&on, ifindex).await?;
                let same = |had: &Route| had.destination == route.destination && had.gateway == route.gateway;
                if routes.iter().any(same) {
                    return Ok(());
                }
                Err(on.error(add_route(route), source))
            }
            done => done.map_err(|source| on.error(add_route(route), source)),
        }
    }

    async fn replace_route(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        route: &Route,
    ) -> Result<(), LinkError> {
        let on = self.on(namespace, ifindex).await?;
        let message = RouteNetlinkMessage::NewRoute(encode::route(ifindex, route));
        let replaced = on.conversation.change(message, NLM_F_CREATE | NLM_F_REPLACE).await;
        replaced.map_err(|source| on.error(add_route(route), source))
    }

    async fn set_sysctls(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        sysctls: &BTreeMap<String, String>,
    ) -> Result<(), LinkError> {
        if sysctls.is_empty() {
            return Ok(());
        }
        let on = self.on(namespace, ifindex).await?;
        let name = on.facts(&LinkRef::Index(ifindex)).await?.link.name;
        on.write_sysctls(self.host(), name, sysctls.clone()).await
    }

    async fn remove_alt_name(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        name: &str,
    ) -> Result<(), LinkError> {
        let on = self.on(namespace, ifindex).await?;
        let message = RouteNetlinkMessage::DelLinkProp(encode::alt_name(ifindex, name));
        match on.conversation.change(message, 0).await {
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            done => {
                done.map_err(|source| on.error(format!("take away the alternative name {name:?}"), source))
            }
        }
    }

    async fn make_pair(&self, pair: &Pair) -> Result<Ends, LinkError> {
        make::pair(self, pair).await
    }

    async fn open_pair(&self, host_end: u32, kind: PairKind) -> Result<(), LinkError> {
        make::open_pair(&self.on(&Namespace::Host, host_end).await?, host_end, kind).await
    }

    async fn make_upper(&self, upper: &Upper) -> Result<u32, LinkError> {
        make::upper(self, upper).await
    }

    async fn remake(&self, home: &Home) -> Result<u32, LinkError> {
        remake::remake(self, home).await
    }

    async fn remove(&self, namespace: &Namespace, ifindex: u32) -> Result<(), LinkError> {
        make::remove(&self.on(namespace, ifindex).await?, ifindex).await
    }

    async fn restore(&self, ifindex: u32, home: &Home) -> Result<(), Vec<LinkError>> {
        restore::all(self, ifindex, home).await
    }
}

impl Subject {
    /// An address that is there already gets the flags and lifetime asked for.
    async fn add_address(&self, ifindex: u32, address: &Address) -> Result<(), LinkError> {
        let message = RouteNetlinkMessage::NewAddress(encode::address(ifindex, address));
        let done = self.conversation.change(message, NLM_F_CREATE | NLM_F_REPLACE).await;
        done.map_err(|source| self.error(format!("add the address {}", address.address), source))
    }

    async fn write_sysctls(
        &self,
        host: Option<&Path>,
        name: String,
        sysctls: BTreeMap<String, String>,
    ) -> Result<(), LinkError> {
        let written =
            namespace::within(&self.namespace, host, move || sysctl::write(&name, &sysctls)).await?;
        written.map_err(|(what, source)| self.error(format!("set the sysctl {what}"), source))
    }
}

fn add_route(route: &Route) -> String {
    let via = route.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
    format!("add the route to {}{via} in table {}", route.destination, route.table)
}

fn name_taken<T>(result: Result<T, LinkError>, name: &str, namespace: &Namespace) -> Result<T, LinkError> {
    match result {
        Err(LinkError::Kernel { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
            Err(LinkError::NameTaken { name: name.to_owned(), namespace: namespace.clone() })
        }
        other => other,
    }
}

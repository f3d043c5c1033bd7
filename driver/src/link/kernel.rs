//! [`Links`] on rtnetlink and /proc/sys.

mod conversation;
mod decode;
mod encode;
mod events;
mod home;
pub mod identity;
mod ipsec;
mod make;
mod namespace;
mod probe;
mod recipe;
mod remake;
mod restore;
mod subject;
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
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{RouteNetlinkMessage, link::LinkAttribute};

pub(crate) use self::events::event_socket;
use self::{
    conversation::Conversation,
    namespace::HostPath,
    subject::{Subject, add_route, name_taken},
};
pub use self::{events::Events, probe::can_make};
use super::{
    Address, Ends, Home, Link, LinkError, LinkRef, Links, Namespace, Pair, PairKind, Route, Setup, Upper,
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
        self.on(namespace, ifindex).await?.set_up(ifindex, up).await
    }

    async fn rename(&self, namespace: &Namespace, ifindex: u32, name: &str) -> Result<(), LinkError> {
        self.on(namespace, ifindex).await?.rename(ifindex, name).await
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

    async fn set_mtu(&self, namespace: &Namespace, ifindex: u32, mtu: u32) -> Result<(), LinkError> {
        self.on(namespace, ifindex).await?.set_mtu(ifindex, mtu).await
    }

    async fn configure(&self, namespace: &Namespace, ifindex: u32, setup: &Setup) -> Result<(), LinkError> {
        self.on(namespace, ifindex).await?.configure(self.host(), ifindex, setup).await
    }

    async fn add_address(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        address: &Address,
    ) -> Result<(), LinkError> {
        self.on(namespace, ifindex).await?.add_address(ifindex, address).await
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

    async fn add_routes(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        routes: &[Route],
    ) -> Result<(), LinkError> {
        if routes.is_empty() {
            return Ok(());
        }
        let on = self.on(namespace, ifindex).await?;
        for route in routes {
            on.add_route(ifindex, route).await?;
        }
        Ok(())
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
        self.on(namespace, ifindex).await?.set_sysctls(self.host(), ifindex, sysctls).await
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

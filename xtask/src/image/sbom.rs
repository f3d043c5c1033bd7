//! The bill of materials: every crate that is in the program, as SPDX 2.3.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::Source;
use crate::command::{cargo, output};

/// What cargo says of the workspace.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
    repository: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    kind: Option<String>,
}

/// An SPDX document.
#[expect(clippy::struct_field_names, reason = "the names of SPDX")]
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Document {
    spdx_version: &'static str,
    data_license: &'static str,
    #[serde(rename = "SPDXID")]
    id: &'static str,
    name: String,
    document_namespace: String,
    creation_info: Creation,
    packages: Vec<Item>,
    relationships: Vec<Relationship>,
}

#[derive(Serialize)]
struct Creation {
    created: String,
    creators: [&'static str; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    #[serde(rename = "SPDXID")]
    id: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version_info: Option<String>,
    download_location: String,
    files_analyzed: bool,
    license_concluded: &'static str,
    license_declared: String,
    copyright_text: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    external_refs: Vec<Reference>,
}

#[expect(clippy::struct_field_names, reason = "the names of SPDX")]
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    reference_category: &'static str,
    reference_type: &'static str,
    reference_locator: String,
}

#[expect(clippy::struct_field_names, reason = "the names of SPDX")]
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Relationship {
    spdx_element_id: String,
    relationship_type: &'static str,
    related_spdx_element: String,
}

/// What is in the program `netferry`.
pub(crate) fn of_netferry(source: &Source) -> Result<Document> {
    let listed = output(
        cargo()
            .args(["metadata", "--locked", "--format-version", "1"])
            .args(["--filter-platform", "x86_64-unknown-linux-musl"]),
    )
    .context("`cargo metadata` failed")?;
    let metadata = serde_json::from_str(&listed).context("`cargo metadata`")?;
    document(&metadata, source)
}

fn document(metadata: &Metadata, source: &Source) -> Result<Document> {
    let packages: BTreeMap<&str, &Package> =
        metadata.packages.iter().map(|package| (package.id.as_str(), package)).collect();
    let nodes: BTreeMap<&str, &Node> =
        metadata.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
    let root = metadata.packages.iter().find(|package| package.name == "netferry").context("no netferry")?;
    let mut seen = BTreeSet::from([root.id.as_str()]);
    let mut todo = vec![root.id.as_str()];
    let mut relationships = vec![Relationship {
        spdx_element_id: "SPDXRef-DOCUMENT".into(),
        relationship_type: "DESCRIBES",
        related_spdx_element: reference(root),
    }];
    while let Some(id) = todo.pop() {
        for dependency in &nodes.get(id).with_context(|| format!("{id} is not resolved"))?.deps {
            // Build scripts and tests are not in the program.
            if dependency.dep_kinds.iter().all(|kind| kind.kind.is_some()) {
                continue;
            }
            relationships.push(Relationship {
                spdx_element_id: reference(packages[id]),
                relationship_type: "DEPENDS_ON",
                related_spdx_element: reference(packages[dependency.pkg.as_str()]),
            });
            if seen.insert(&dependency.pkg) {
                todo.push(&dependency.pkg);
            }
        }
    }
    relationships.sort_by(|a, b| {
        (&a.spdx_element_id, &a.related_spdx_element).cmp(&(&b.spdx_element_id, &b.related_spdx_element))
    });
    let mut items: Vec<Item> = seen.iter().map(|id| item(packages[id])).collect();
    items.push(of_toolchain("rust-std", "https://github.com/rust-lang/rust", "MIT OR Apache-2.0"));
    items.push(of_toolchain("musl", "https://musl.libc.org", "MIT"));
    items.sort_by(|a, b| a.id.cmp(&b.id));
    ensure!(items.windows(2).all(|pair| pair[0].id != pair[1].id), "two packages have one name and version");
    let revision = source.revision.as_deref().unwrap_or("unknown");
    Ok(Document {
        spdx_version: "SPDX-2.3",
        data_license: "CC0-1.0",
        id: "SPDXRef-DOCUMENT",
        name: format!("netferry-{}", root.version),
        document_namespace: format!("{}/spdx/{}/{revision}", env!("CARGO_PKG_REPOSITORY"), root.version),
        creation_info: Creation { created: source.timestamp()?, creators: ["Tool: cargo-xtask-image"] },
        packages: items,
        relationships,
    })
}

/// Letters, digits, dots and hyphens are allowed.
fn reference(package: &Package) -> String {
    let name = format!("SPDXRef-{}-{}", package.name, package.version);
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect()
}

fn item(package: &Package) -> Item {
    let of_registry = package.source.as_deref().is_some_and(|source| source.starts_with("registry+"));
    Item {
        id: reference(package),
        name: package.name.clone(),
        version_info: Some(package.version.clone()),
        download_location: if of_registry {
            format!("https://crates.io/api/v1/crates/{}/{}/download", package.name, package.version)
        } else {
            package.repository.clone().unwrap_or_else(|| "NOASSERTION".into())
        },
        files_analyzed: false,
        license_concluded: "NOASSERTION",
        // An older way to write a choice.
        license_declared: package
            .license
            .as_deref()
            .map_or("NOASSERTION".into(), |text| text.replace('/', " OR ")),
        copyright_text: "NOASSERTION",
        external_refs: if of_registry {
            vec![Reference {
                reference_category: "PACKAGE-MANAGER",
                reference_type: "purl",
                reference_locator: format!("pkg:cargo/{}@{}", package.name, package.version),
            }]
        } else {
            Vec::new()
        },
    }
}

/// What the compiler links in, which cargo does not list.
fn of_toolchain(name: &str, from: &str, license: &str) -> Item {
    Item {
        id: format!("SPDXRef-toolchain-{name}"),
        name: name.into(),
        version_info: None,
        download_location: from.into(),
        files_analyzed: false,
        license_concluded: "NOASSERTION",
        license_declared: license.into(),
        copyright_text: "NOASSERTION",
        external_refs: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_crates_are_listed_and_the_tests_are_not() {
        let source = Source { time: 1_700_000_000, revision: Some("abc".into()) };
        let bill = serde_json::to_value(of_netferry(&source).expect("a bill")).expect("JSON");
        assert_eq!(bill["creationInfo"]["created"], "2023-11-14T22:13:20Z");
        let packages = bill["packages"].as_array().expect("packages");
        let find = |name: &str| packages.iter().find(|package| package["name"] == name);
        let tokio = find("tokio").expect("tokio");
        assert_eq!(tokio["licenseDeclared"], "MIT");
        let locator = tokio["externalRefs"][0]["referenceLocator"].as_str().expect("purl");
        assert!(locator.starts_with("pkg:cargo/tokio@1."), "{locator}");
        assert!(find("musl").is_some() && find("netferry-common").is_some());
        assert!(find("criterion").is_none() && find("tonic-prost-build").is_none());
        let ids: Vec<_> = packages.iter().map(|package| package["SPDXID"].as_str().expect("id")).collect();
        for relationship in bill["relationships"].as_array().expect("relationships") {
            let related = relationship["relatedSpdxElement"].as_str().expect("id");
            assert!(ids.contains(&related), "{related}");
        }
    }
}

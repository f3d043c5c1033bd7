//! Prints the CustomResourceDefinition of Networks: `cargo xtask codegen` puts it into `manifests/`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("# Made by `cargo xtask codegen` from driver/src/network/spec.rs.");
    print!("{}", serde_yaml_ng::to_string(&netferry::network::spec::definition()?)?);
    Ok(())
}

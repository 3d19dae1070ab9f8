//! Compiles `proto/` into Rust with protox, so that no `protoc` has to be installed.

use std::error::Error;
use std::path::PathBuf;

/// The files of the contract, relative to `proto/`.
const PROTO_FILES: [&str; 3] = ["kms/v1/crypto.proto", "kms/v1/key.proto", "kms/v1/admin.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(PROTO_FILES, ["proto"])?;
    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let encoded = protox::prost::Message::encode_to_vec(&descriptors);
    std::fs::write(out_dir.join("kms_descriptor.bin"), encoded)?;
    // Secret and bulk fields are `Bytes`: they are sliced out of the request without a copy.
    tonic_prost_build::configure()
        .build_transport(false)
        .bytes(".kms.v1")
        .compile_fds(descriptors)?;
    Ok(())
}

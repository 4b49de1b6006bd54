//! Writes every target's seeds to `corpus/TARGET/`, where cargo-fuzz begins.

use std::{env, fs, io, path::Path};

fn main() -> io::Result<()> {
    // The first argument, if given, is the directory to write to.
    let root = env::args_os().nth(1).map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus"), Into::into);
    for target in trefoil_fuzz::TARGETS {
        let folder = root.join(target.name);
        fs::create_dir_all(&folder)?;
        let seeds = (target.seeds)();
        for (number, seed) in seeds.iter().enumerate() {
            fs::write(folder.join(format!("seed-{number:03}")), seed)?;
        }
        println!("{}: {} seeds", target.name, seeds.len());
    }
    Ok(())
}

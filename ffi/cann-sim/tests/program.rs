//! A C program on the folder that `scripts/cann-driver.sh` makes, configured by `PORTOLAN_SIM_CONFIG`.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The simulator's library, which lies beside the test.
fn library() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.parent().unwrap().join("libportolan_cann_sim.so")
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    output
}

/// A driver folder and the program, in a folder of a name; `None` where there is no C compiler.
fn furnish(name: &str) -> Option<(PathBuf, PathBuf)> {
    if Command::new("cc").arg("--version").output().is_err() {
        eprintln!("skipped: cc was not found, so no C program can be made");
        return None;
    }
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let script = crate_folder.join("../../scripts/cann-driver.sh");
    run(Command::new("bash").arg(script).arg("--from").arg(library()).arg(&folder));
    let (libraries, program) = (folder.join("lib64"), folder.join("program"));
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-Wall", "-Werror", "-o"]).arg(&program).arg(crate_folder.join("tests/program.c"));
    cc.arg("-I").arg(crate_folder.join("../cann-sys/include")).arg("-L").arg(&libraries);
    run(cc.args(["-lascendcl", "-lnnopbase", "-lopapi", "-ldl"]));
    Some((libraries, program))
}

#[test]
fn a_c_program_runs_on_the_folder_and_the_configuration_says_on_what() {
    let Some((libraries, program)) = furnish("c-program") else { return };
    let config = libraries.join("config.json");
    for (text, soc) in
        [(r#"{"devices":1,"soc":"A2"}"#, "Ascend910B3"), (r#"{"seed":3,"soc":"950"}"#, "Ascend950")]
    {
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new(&program);
        command.env("LD_LIBRARY_PATH", &libraries).env("PORTOLAN_SIM_CONFIG", &config);
        let output = run(&mut command);
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("soc {soc}\ndone\n"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(&format!("simulated CANN: {text}")), "{said}");
        assert!(said.contains("at aclFinalize") && said.contains(r#""aclTensor":1"#), "{said}");
    }
}

#[test]
fn a_rule_is_broken_only_where_the_configuration_tolerates_it() {
    let Some((libraries, program)) = furnish("c-program-tolerated") else { return };
    let config = libraries.join("config.json");
    let mut command = Command::new(&program);
    command.arg("unaligned").env("LD_LIBRARY_PATH", &libraries).env("PORTOLAN_SIM_CONFIG", &config);
    std::fs::write(&config, r#"{"alignment":512}"#).unwrap();
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("is not aligned to 32 bytes"), "{said}");
    std::fs::write(&config, r#"{"alignment":512,"tolerated":["tensor_alignment"]}"#).unwrap();
    let said = run(&mut command).stderr;
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("tolerated tensor_alignment of aclnnAdd: "), "{said}");
    for (text, why) in [
        (r#"{"tolerated":["leaks"]}"#, "`tolerated` names \"leaks\""),
        (r#"{"alignment":96}"#, "`alignment` is 96"),
    ] {
        std::fs::write(&config, text).unwrap();
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn without_a_configuration_the_driver_is_silent_and_a_wrong_one_is_named() {
    let Some((libraries, program)) = furnish("c-program-defaults") else { return };
    let output =
        run(Command::new(&program).env("LD_LIBRARY_PATH", &libraries).env_remove("PORTOLAN_SIM_CONFIG"));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "soc Ascend910_9391\ndone\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let config = libraries.join("config.json");
    std::fs::write(&config, r#"{"soc":"A9"}"#).unwrap();
    let mut command = Command::new(&program);
    let output = run(command.env("LD_LIBRARY_PATH", &libraries).env("PORTOLAN_SIM_CONFIG", &config));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("PORTOLAN_SIM_CONFIG: `soc` is A9") && said.contains("the defaults are used"),
        "{said}"
    );
}

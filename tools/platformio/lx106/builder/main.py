"""SCons script: cross-compiles for lx106 with picolibc and runs the program in QEMU.

Options of the environment in platformio.ini:
    custom_ldscript: The linker script, from the project's root.
    custom_memory: What `-m` gives the machine, the emulated PSRAM; a program that reaches beyond it
        traps.
    custom_qemu_timeout: Seconds after which the emulator is ended; one whose kernel file is
        missing would wait for ever.
"""

import shlex
import subprocess
import sys
from pathlib import Path

from SCons.Script import AlwaysBuild, Default, DefaultEnvironment

PREFIX = "xtensa-lx106-elf-"

env = DefaultEnvironment()


def picolibc_specs():
    """Returns the full path of picolibc's specs file; the compiler does not search for it."""
    compiler = env.WhereIs(PREFIX + "gcc")
    if compiler is None:
        sys.exit(
            f"{PREFIX}gcc is not installed. "
            "On Debian: apt-get install gcc-xtensa-lx106 picolibc-xtensa-lx106-elf"
        )
    sysroot = subprocess.run(
        [compiler, "-print-sysroot"], capture_output=True, text=True, check=True
    ).stdout.strip()
    candidates = [Path(sysroot or "/"), Path("/usr/lib/xtensa-lx106-elf")]
    for folder in candidates:
        if (folder / "picolibc.specs").is_file():
            return folder / "picolibc.specs"
    sys.exit("picolibc is not installed. On Debian: apt-get install picolibc-xtensa-lx106-elf")


def option(name, default=""):
    """Returns one of the environment's own options."""
    return env.GetProjectOption(f"custom_{name}", default)


env.Replace(
    AR=PREFIX + "ar",
    AS=PREFIX + "gcc",
    CC=PREFIX + "gcc",
    LINK=PREFIX + "gcc",
    OBJCOPY=PREFIX + "objcopy",
    RANLIB=PREFIX + "ranlib",
    SIZETOOL=PREFIX + "size",
    PROGNAME="tllm-lx106",
    PROGSUFFIX=".elf",
)
specs = f"--specs={picolibc_specs()}"
env.Append(
    ASPPFLAGS=["-x", "assembler-with-cpp", "-mlongcalls", "-mtext-section-literals"],
    CFLAGS=["-std=c11"],
    CCFLAGS=[
        specs,
        "-O2",
        "-mlongcalls",
        "-mtext-section-literals",
        "-ffunction-sections",
        "-fdata-sections",
    ],
    LINKFLAGS=[
        specs,
        "-nostartfiles",
        "-mlongcalls",
        "-Wl,--gc-sections",
        "-Wl,-Map,${BUILD_DIR}/${PROGNAME}.map",
    ],
)
if script := option("ldscript"):
    script = Path(env.subst("$PROJECT_DIR")) / script
    env.Append(LINKFLAGS=["-T", str(script)])

program = env.BuildProgram()
if option("ldscript"):
    env.Depends(program, str(script))

qemu = [
    "timeout",
    option("qemu_timeout", "60"),
    "qemu-system-xtensa",
    "-M",
    "sim",
    "-cpu",
    "lx106",
    "-m",
    option("memory", "4M"),
    "-nographic",
    "-monitor",
    "none",
    "-semihosting-config",
]


def run_in_qemu(target, source, env):
    """Runs the program; its exit status is the action's."""
    words = ["enable=on", "arg=prog"]
    words += [f"arg={word}" for word in shlex.split(env.subst("$PROGRAM_ARGS"))]
    kernel = source[0].get_abspath()
    return subprocess.run(
        [*qemu, ",".join(words), "-kernel", kernel], stdin=subprocess.DEVNULL, check=False
    ).returncode


AlwaysBuild(env.Alias("exec", program, env.VerboseAction(run_in_qemu, "Running in QEMU")))
size = env.VerboseAction("$SIZETOOL -A -d $SOURCES", "Measuring $SOURCE")
AlwaysBuild(env.Alias("size", program, size))
Default(program)

"""SCons script: the same flags as firmware/ports/posix/CMakeLists.txt."""

from SCons.Script import COMMAND_LINE_TARGETS, AlwaysBuild, Default, DefaultEnvironment

env = DefaultEnvironment()
env.Replace(PROGNAME="tllm-sim")
env.Append(
    CFLAGS=["-std=c11"],
    CCFLAGS=["-O3", "-pthread"],
    LINKFLAGS=["-pthread"],
)
if "__test" in COMMAND_LINE_TARGETS:
    # A test has a main of its own and needs the portable code alone.
    env.Append(SRC_FILTER=" -<../ports/*>")
program = env.BuildProgram()
AlwaysBuild(env.Alias("exec", program, env.VerboseAction("$SOURCE $PROGRAM_ARGS", "Running")))
Default(program)

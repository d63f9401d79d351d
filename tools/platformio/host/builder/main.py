"""SCons script: the same flags as firmware/ports/posix/CMakeLists.txt."""

from SCons.Script import AlwaysBuild, Default, DefaultEnvironment

env = DefaultEnvironment()
env.Replace(PROGNAME="tllm-sim")
env.Append(
    CFLAGS=["-std=c11"],
    CCFLAGS=["-O3", "-pthread"],
    LINKFLAGS=["-pthread"],
)
program = env.BuildProgram()
AlwaysBuild(env.Alias("exec", program, env.VerboseAction("$SOURCE $PROGRAM_ARGS", "Running")))
Default(program)

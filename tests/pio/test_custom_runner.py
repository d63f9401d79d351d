"""Reads a test program's TAP lines for ``pio test``, and builds it without the board's own main."""

import re

import click
from platformio.public import TestCase, TestRunnerBase, TestStatus

LINE = re.compile(r"^(not )?ok \d+ - (.+)$")
PLAN = re.compile(r"^1\.\.(\d+)$")


class CustomTestRunner(TestRunnerBase):
    """Test Anything Protocol: ``1..N`` first, then ``ok I - name`` or ``not ok I - name``."""

    planned = None

    def configure_build_env(self, env):
        """Makes the linker prefer the test's ``__wrap_NAME`` to the program's entry NAME."""
        wrapped = env.GetProjectOption("custom_test_wrap", "").split()
        env.Append(LINKFLAGS=[f"-Wl,--wrap={name}" for name in wrapped])
        return env

    def on_testing_line_output(self, line):
        """Records one line of the program's output."""
        line = line.strip()
        if plan := PLAN.match(line):
            self.planned = int(plan.group(1))
        elif result := LINE.match(line):
            failed, name = result.groups()
            status = TestStatus.FAILED if failed else TestStatus.PASSED
            case = TestCase(name=name, status=status)
            self.test_suite.add_case(case)
            click.echo(case.humanize())
        elif line:
            click.echo(line)

    def stage_testing(self):
        """Runs the program, and fails where it did not say as much as it planned to."""
        super().stage_testing()
        said = len(self.test_suite.cases)
        if self.planned is None or said != self.planned:
            message = f"{said} results where {self.planned or 'some'} were planned"
            self.test_suite.add_case(
                TestCase(name="plan", status=TestStatus.FAILED, message=message)
            )
            click.echo(message, err=True)

// Checks what is in deploy/ by the libraries of those who will read it: docker's for the compose file, Helm's for the chart.
//
//	deploy compose FILE
//	deploy lint --strict --quiet --kube-version 1.35.0 --values FILE CHART
//	deploy template --kube-version 1.35.0 --values FILE --set NAME=VALUE RELEASE CHART
//
// The last two take the place of the program helm where there is none, with these options of it: to build all of it takes
// twice as long.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/compose-spec/compose-go/v2/cli"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	"helm.sh/helm/v3/pkg/releaseutil"
	"helm.sh/helm/v3/pkg/strvals"
)

func main() {
	err := errors.New("usage: deploy compose|lint|template")
	if len(os.Args) > 1 {
		switch arguments := os.Args[2:]; os.Args[1] {
		case "compose":
			err = checkCompose(arguments)
		case "lint":
			err = lintChart(arguments)
		case "template":
			err = renderChart(arguments)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

// As `docker compose` reads it: against the schema of the Compose Specification, with variables from the environment, and
// whether its parts fit together.
func checkCompose(files []string) error {
	options, err := cli.NewProjectOptions(files, cli.WithOsEnv, cli.WithResolvedPaths(true))
	if err != nil {
		return err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return err
	}
	fmt.Printf("%s: %d services, valid\n", strings.Join(files, ", "), len(project.Services))
	return nil
}

type list []string

func (l *list) String() string         { return strings.Join(*l, ",") }
func (l *list) Set(value string) error { *l = append(*l, value); return nil }

// What a chart is given, and what is left of the arguments.
func chartArguments(name string, arguments []string) (map[string]any, *chartutil.KubeVersion, []string, error) {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	var files, sets list
	flags.Var(&files, "values", "file with values")
	flags.Var(&sets, "set", "NAME=VALUE")
	kubernetes := flags.String("kube-version", chartutil.DefaultCapabilities.KubeVersion.Version, "version of Kubernetes")
	flags.Bool("strict", true, "fail on warnings; always so")
	flags.Bool("quiet", true, "print only what is wrong; always so")
	if err := flags.Parse(arguments); err != nil {
		return nil, nil, nil, err
	}
	version, err := chartutil.ParseKubeVersion(*kubernetes)
	if err != nil {
		return nil, nil, nil, err
	}
	values := map[string]any{}
	for _, file := range files {
		more, err := chartutil.ReadValuesFile(file)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("%s: %w", file, err)
		}
		values = chartutil.MergeTables(more.AsMap(), values)
	}
	for _, set := range sets {
		if err := strvals.ParseInto(set, values); err != nil {
			return nil, nil, nil, err
		}
	}
	return values, version, flags.Args(), nil
}

// `helm lint`
func lintChart(arguments []string) error {
	values, version, charts, err := chartArguments("lint", arguments)
	if err != nil {
		return err
	}
	wrong := 0
	for _, chart := range charts {
		for _, message := range lint.AllWithKubeVersion(chart, values, "default", version).Messages {
			if message.Severity >= support.WarningSev {
				fmt.Println(message)
				wrong++
			}
		}
	}
	if wrong > 0 || len(charts) == 0 {
		return fmt.Errorf("%d charts linted, %d complaints", len(charts), wrong)
	}
	return nil
}

// `helm template`
func renderChart(arguments []string) error {
	values, version, rest, err := chartArguments("template", arguments)
	if err != nil {
		return err
	}
	if len(rest) != 2 {
		return errors.New("template: needs RELEASE and CHART")
	}
	chart, err := loader.Load(rest[1])
	if err != nil {
		return err
	}
	if needs := chart.Metadata.KubeVersion; needs != "" && !chartutil.IsCompatibleRange(needs, version.String()) {
		return fmt.Errorf("the chart requires Kubernetes %s, not %s", needs, version)
	}
	if err := chartutil.ProcessDependenciesWithMerge(chart, values); err != nil {
		return err
	}
	capabilities := chartutil.DefaultCapabilities.Copy()
	capabilities.KubeVersion = *version
	release := chartutil.ReleaseOptions{Name: rest[0], Namespace: "default", Revision: 1, IsInstall: true}
	given, err := chartutil.ToRenderValues(chart, values, release, capabilities)
	if err != nil {
		return err
	}
	files, err := engine.Render(chart, given)
	if err != nil {
		return err
	}
	for name := range files {
		if strings.HasSuffix(name, "NOTES.txt") {
			delete(files, name)
		}
	}
	hooks, manifests, err := releaseutil.SortManifests(files, capabilities.APIVersions, releaseutil.InstallOrder)
	if err != nil {
		return err
	}
	for _, manifest := range manifests {
		write(os.Stdout, manifest.Name, manifest.Content)
	}
	for _, hook := range hooks {
		write(os.Stdout, hook.Path, hook.Manifest)
	}
	return nil
}

func write(out io.Writer, name, content string) {
	fmt.Fprintf(out, "---\n# Source: %s\n%s\n", name, content)
}

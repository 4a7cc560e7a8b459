"""`convexport --web`: a bundle as a page that classifies images in any browser, without internet access."""
